//! Compiles the kernel programs, so that the binary carries exactly those it was tested with.

use std::{env, path::PathBuf};

use portcullis_ebpf_build::{compile, find_toolchain};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let endian = env::var("CARGO_CFG_TARGET_ENDIAN").expect("cargo sets it");
    let target = if endian == "big" { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };

    let root = manifest.parent().expect("the package lies in the workspace");
    for source in
        ["agent-ebpf/src", "agent-ebpf/Cargo.toml", "agent-ebpf/Cargo.lock", "agent-common"]
    {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    println!("cargo::rerun-if-env-changed={}", portcullis_ebpf_build::CHOICE);
    println!("cargo::rerun-if-env-changed={}", portcullis_ebpf_build::CACHE);

    let built = find_toolchain().and_then(|toolchain| {
        println!("cargo::warning=kernel programs: compiled by {toolchain}");
        compile(&toolchain, &root.join("agent-ebpf"), target, &out.join("ebpf"))
    });
    match built {
        Ok(object) => println!("cargo::rustc-env=PORTCULLIS_EBPF_OBJECT={}", object.display()),
        Err(error) => {
            for line in error.to_string().lines() {
                println!("cargo::error={line}");
            }
        }
    }
}
