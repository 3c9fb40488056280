//! KubeEdge's Device Mapper Interface, v1beta1, as the published API has it: both services, their
//! clients, and what a free-form configuration value looks like in them.

mod value;

/// The messages and services of package `v1beta1`.
#[expect(
    clippy::pedantic,
    unused_qualifications,
    reason = "generated from proto/dmi-v1beta1.proto"
)]
pub mod v1beta1 {
    tonic::include_proto!("v1beta1");
}

pub use value::{Scalar, pack, unpack};
