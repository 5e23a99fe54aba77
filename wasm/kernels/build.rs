//! Link arguments of the WebAssembly module: the memory is made by the importer, so that it can set a maximum.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("wasm32") {
        println!("cargo:rustc-link-arg-cdylib=--import-memory");
        println!("cargo:rustc-link-arg-cdylib=--initial-memory=2097152");
    }
}
