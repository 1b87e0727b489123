//! Compiles the C shim against the SPDK at hand: `SPDK_DIR` (a built tree), else pkg-config.

#![allow(clippy::panic, reason = "a build script reports by panicking")]

use std::env;
use std::path::{Path, PathBuf};

const LIBRARIES: &[&str] = &[
    "spdk_bdev",
    "spdk_thread",
    "spdk_rpc",
    "spdk_jsonrpc",
    "spdk_json",
    "spdk_log",
    "spdk_notify",
    "spdk_util",
];

fn main() {
    println!("cargo:rerun-if-changed=shim");
    for name in ["SPDK_DIR", "PKG_CONFIG_PATH"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let app = env::var_os("CARGO_FEATURE_APP").is_some();
    let mut includes = Vec::new();
    match env::var_os("SPDK_DIR").map(PathBuf::from) {
        Some(dir) => from_tree(&dir, &mut includes),
        None => from_pkg_config(&mut includes),
    }
    let mut build = cc::Build::new();
    build.includes(&includes).opt_level(2).warnings(true);
    build.force_frame_pointer(false);
    build.flag("-Wno-unused-parameter").flag("-D_GNU_SOURCE");
    for file in [
        "runtime", "base", "vbdev", "forward", "part", "module", "rpc",
    ] {
        build.file(format!("shim/{file}.c"));
    }
    if app {
        build.file("shim/app.c");
    }
    build.compile("spdk_dm_shim");
}

fn from_tree(dir: &Path, includes: &mut Vec<PathBuf>) {
    let lib = dir.join("build/lib");
    if !lib.join("libspdk_bdev.so").exists() {
        panic!(
            "SPDK_DIR={} has no build/lib/libspdk_bdev.so: configure SPDK --with-shared and build it, or run `make spdk`",
            dir.display()
        );
    }
    includes.push(dir.join("include"));
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!(
        "cargo:rerun-if-changed={}",
        dir.join("include/spdk/version.h").display()
    );
    let mut names: Vec<&str> = LIBRARIES.to_vec();
    if env::var_os("CARGO_FEATURE_APP").is_some() {
        names.push("spdk_event");
        // Its libraries use OpenSSL from some version on, and leave it to the program to name it.
        if lib.join("libspdk_keyring.so").exists() {
            for name in ["ssl", "crypto"] {
                println!("cargo:rustc-link-lib=dylib={name}");
            }
        }
    }
    for name in names {
        if lib.join(format!("lib{name}.so")).exists() {
            println!("cargo:rustc-link-lib=dylib={name}");
        }
    }
}

fn from_pkg_config(includes: &mut Vec<PathBuf>) {
    let packages: &[&str] = match env::var_os("CARGO_FEATURE_APP") {
        Some(_) => &["spdk_bdev", "spdk_rpc", "spdk_notify", "spdk_event"],
        None => &["spdk_bdev", "spdk_rpc", "spdk_notify"],
    };
    for package in packages {
        match pkg_config::Config::new().probe(package) {
            Ok(library) => includes.extend(library.include_paths),
            Err(error) => panic!(
                "no SPDK found ({error}): set SPDK_DIR to a built SPDK tree, or PKG_CONFIG_PATH to an installed one, or run `make spdk`"
            ),
        }
    }
}
