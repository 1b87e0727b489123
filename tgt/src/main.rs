//! spdk_dm_tgt: SPDK's usual target with the spdk-dm module linked in. Takes spdk_tgt's options.

fn main() {
    spdk_dm::register();
    std::process::exit(spdk::app::spdk_tgt_main());
}
