//! EventBus: local devices on MQTT, by the broker inside or by an external one.
