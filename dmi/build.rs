//! Generates both services; `protoc` comes from the distribution (ADR 0007).

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure()
        // Maps in order: the same device has the same bytes, which is how a change is recognised.
        .btree_map(".")
        .compile_protos(&["proto/dmi-v1beta1.proto"], &["proto"])
}
