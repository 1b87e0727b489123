//! Links what the stock spdk_tgt links: SPDK's modules register themselves when they are loaded, so
//! every library it names is needed, whether or not a symbol of it is used.

#![allow(clippy::panic, reason = "a build script reports by panicking")]

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=SPDK_DIR");
    let Some(dir) = env::var_os("SPDK_DIR").map(PathBuf::from) else {
        panic!(
            "SPDK_DIR is not set: a program with all of SPDK's modules needs a built SPDK tree; run `make spdk`"
        );
    };
    let target = dir.join("build/bin/spdk_tgt");
    let output = Command::new("readelf").arg("-d").arg(&target).output();
    let needed = match &output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout),
        _ => panic!(
            "readelf -d {} failed: is SPDK built there?",
            target.display()
        ),
    };
    let libraries = needed
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| line.split_once('[')?.1.strip_suffix(']'))
        .filter(|name| {
            // OpenSSL: from v26.05 on SPDK's libraries leave it to the program to name it.
            ["libspdk", "librte", "libcrypto", "libssl"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
        });
    println!("cargo:rustc-link-arg-bins=-Wl,--no-as-needed");
    for folder in ["build/lib", "dpdk/build/lib"] {
        println!("cargo:rustc-link-arg-bins=-L{}", dir.join(folder).display());
        println!(
            "cargo:rustc-link-arg-bins=-Wl,-rpath-link,{}",
            dir.join(folder).display()
        );
    }
    for library in libraries {
        println!("cargo:rustc-link-arg-bins=-l:{library}");
    }
}
