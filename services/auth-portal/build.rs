//! Texts are read at compile time by a macro, which does not itself tell cargo what it read.
fn main() {
    println!("cargo:rerun-if-changed=locales");
}
