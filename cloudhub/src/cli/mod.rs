//! The command line beside `run`: it talks to the running hub with the administrator's kubeconfig.

pub mod client;
pub mod token;
