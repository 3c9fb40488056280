//! Shared with the end-to-end tests, which own these files.

#[path = "../../../tests/src/containerd.rs"]
#[expect(unreachable_pub, reason = "public in the crate that owns the file")]
pub(crate) mod containerd;
#[path = "../../../tests/src/oci.rs"]
#[expect(unreachable_pub, reason = "public in the crate that owns the file")]
pub(crate) mod oci;
