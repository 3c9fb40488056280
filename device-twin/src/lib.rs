//! device-twin
