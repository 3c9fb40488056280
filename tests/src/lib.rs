//! What the end-to-end tests, the demo and the benchmarks share: the daemons as processes on real
//! neighbours, a link that can be cut, kubectl, and a device on MQTT.

pub mod api;
pub mod arena;
pub mod chaos;
pub mod containerd;
pub mod containers;
pub mod device;
pub mod expect;
pub mod ground;
pub mod grpc_proxy;
pub mod kills;
pub mod kubectl;
pub mod leaks;
pub mod ledger;
pub mod mangle;
pub mod mosquitto;
pub mod oci;
pub mod process;
pub mod proxy;
pub mod registry;
pub mod rounds;
pub mod scenario;
pub mod wait;
pub mod world;
