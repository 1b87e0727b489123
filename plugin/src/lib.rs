//! The plugin: joins the targets (`bdev`) and the RPC methods (`rpc`) to SPDK (`spdk`).
//!
//! Loaded with `LD_PRELOAD` into a program linked with SPDK's shared libraries, it registers its bdev
//! module and methods before SPDK starts. `spdk_dm_tgt` does the same with [`register`].

mod backend;
mod bases;
mod devices;
mod dm;
mod dump;
mod eras;
mod export;
mod external_merge;
mod gate;
mod held_bdev;
mod host;
mod life;
mod linear;
mod moving_bases;
mod nbd;
mod new_file;
mod opening;
mod parts;
mod ploops;
mod pool_status;
mod readers;
mod registry;
mod snapshots;
mod switching;
mod thins;
mod volume;

use mimalloc::MiMalloc;
use registry::DmModule;

/// Parked I/Os, messages and copies are many small allocations that live through a round to the device:
/// too many for the C library's per-thread caches of seven of a size. SPDK's own memory is not touched.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Registers the bdev module and the RPC methods. Must come before SPDK starts; repeating it does
/// nothing.
pub fn register() {
    spdk::logging::init();
    spdk::module::register("spdk_dm", DmModule);
    spdk::rpc::register(rpc::dispatch::method_names(), |method, params, request| {
        backend::serve(method, params.to_owned(), request);
    });
}

extern "C" fn on_load() {
    register();
}

/// Runs when the library is loaded. In `spdk_dm_tgt` the linker may drop it; [`register`] is called
/// there.
// SAFETY: an entry of .init_array is a function without arguments that is called once; it uses no
// runtime that needs a main.
#[used]
#[unsafe(link_section = ".init_array")]
static ON_LOAD: extern "C" fn() = on_load;
