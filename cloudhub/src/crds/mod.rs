//! The device kinds of KubeEdge, `devices.kubeedge.io/v1beta1`, installed at first start.
//!
//! The schemas are written from the description of the fields (device plane §4.2–§4.4). Members
//! that are free-form keep whatever is in them; everything else that is unknown is pruned and
//! warned about, as by kube-apiserver.

use apiserver::{ApiError, Reason};
use serde_json::{Value, json};

use crate::{
    keys::DEVICES_GROUP,
    kube::{Kube, resources},
};

/// Installs what is missing.
pub async fn install(kube: &Kube) -> Result<(), ApiError> {
    for definition in [
        devices(),
        device_models(),
        device_statuses(),
        rules(),
        rule_endpoints(),
    ] {
        match kube.create(&resources::definitions(), "", definition).await {
            Ok(_) => {}
            Err(error) if error.reason == Reason::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn definition(plural: &str, singular: &str, kind: &str, schema: &Value, columns: &Value) -> Value {
    let of = (DEVICES_GROUP, "v1beta1");
    definition_of(of, plural, singular, kind, schema, columns)
}

fn definition_of(
    (group, version): (&str, &str),
    plural: &str,
    singular: &str,
    kind: &str,
    schema: &Value,
    columns: &Value,
) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.{group}") },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": format!("{kind}List"),
                "plural": plural,
                "singular": singular,
            },
            "versions": [{
                "name": version,
                "served": true,
                "storage": true,
                "additionalPrinterColumns": columns,
                "schema": { "openAPIV3Schema": {
                    "type": "object",
                    "properties": {
                        "apiVersion": { "type": "string" },
                        "kind": { "type": "string" },
                        "metadata": { "type": "object" },
                        "spec": schema["spec"],
                        "status": schema["status"],
                    },
                }},
            }],
        },
    })
}

fn string() -> Value {
    json!({ "type": "string" })
}

fn boolean() -> Value {
    json!({ "type": "boolean" })
}

fn int64() -> Value {
    json!({ "type": "integer", "format": "int64" })
}

fn int32() -> Value {
    json!({ "type": "integer", "format": "int32" })
}

fn strings() -> Value {
    json!({ "type": "object", "additionalProperties": { "type": "string" } })
}

fn free() -> Value {
    json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

fn object(properties: &Value) -> Value {
    json!({ "type": "object", "properties": properties })
}

fn list(items: &Value) -> Value {
    json!({ "type": "array", "items": items })
}

fn visitors() -> Value {
    object(&json!({ "protocolName": string(), "configData": free() }))
}

fn push_method() -> Value {
    let influx = object(&json!({
        "influxdb2ClientConfig": object(&json!({
            "url": string(), "org": string(), "bucket": string() })),
        "influxdb2DataConfig": object(&json!({
            "measurement": string(), "tag": strings(), "fieldKey": string() })),
    }));
    let redis = object(&json!({ "redisClientConfig": object(&json!({
        "addr": string(), "db": int64(), "poolsize": int64(), "minIdleConns": int64() })) }));
    let tdengine = object(&json!({ "TDEngineClientConfig": object(&json!({
        "addr": string(), "dbName": string() })) }));
    let mysql = object(&json!({ "mysqlClientConfig": object(&json!({
        "addr": string(), "database": string(), "userName": string() })) }));
    object(&json!({
        "http": object(&json!({
            "hostName": string(), "port": int64(), "requestPath": string(), "timeout": int64() })),
        "mqtt": object(&json!({
            "address": string(), "topic": string(), "qos": int32(), "retained": boolean() })),
        "otel": object(&json!({ "endpointURL": string() })),
        "dbMethod": object(&json!({
            "influxdb2": influx, "redis": redis, "TDEngine": tdengine, "mysql": mysql })),
        "anomalyDetection": free(),
    }))
}

/// A twin's value with its metadata.
fn twin_value() -> Value {
    json!({
        "type": "object",
        "required": ["value"],
        "properties": { "value": string(), "metadata": strings() },
    })
}

fn devices() -> Value {
    let property = json!({
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": string(),
            "desired": twin_value(),
            "visitors": visitors(),
            "reportCycle": int64(),
            "collectCycle": int64(),
            "reportToCloud": boolean(),
            "pushMethod": push_method(),
        },
    });
    let spec = object(&json!({
        "deviceModelRef": object(&json!({ "name": string() })),
        "nodeName": string(),
        "protocol": object(&json!({ "protocolName": string(), "configData": free() })),
        "properties": {
            "type": "array", "items": property,
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
        },
        "methods": list(&object(&json!({
            "name": string(), "description": string(), "propertyNames": list(&string()) }))),
        "stateReport": object(&json!({ "reportToCloud": boolean(), "reportCycle": int64() })),
    }));
    let columns = json!([
        { "name": "Node", "type": "string", "jsonPath": ".spec.nodeName" },
        { "name": "Model", "type": "string", "jsonPath": ".spec.deviceModelRef.name" },
        { "name": "Protocol", "type": "string", "jsonPath": ".spec.protocol.protocolName",
          "priority": 1 },
        { "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" },
    ]);
    let schema = json!({ "spec": spec, "status": free() });
    definition("devices", "device", "Device", &schema, &columns)
}

fn device_models() -> Value {
    let property = object(&json!({
        "name": string(),
        "description": string(),
        "type": { "type": "string",
                  "enum": ["INT", "FLOAT", "DOUBLE", "STRING", "BOOLEAN", "BYTES", "STREAM"] },
        "accessMode": { "type": "string", "enum": ["ReadWrite", "ReadOnly"] },
        "minimum": string(),
        "maximum": string(),
        "unit": string(),
        "visitors": visitors(),
    }));
    let spec = object(&json!({
        "protocol": string(),
        "protocolConfigData": free(),
        "properties": list(&property),
    }));
    let columns = json!([
        { "name": "Protocol", "type": "string", "jsonPath": ".spec.protocol" },
        { "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" },
    ]);
    let schema = json!({ "spec": spec, "status": free() });
    definition(
        "devicemodels",
        "devicemodel",
        "DeviceModel",
        &schema,
        &columns,
    )
}

/// Device plane §4.6. No status subresource, as in KubeEdge.
fn rules() -> Value {
    let spec = json!({
        "type": "object",
        "required": ["source", "sourceResource", "target", "targetResource"],
        "properties": {
            "source": string(), "sourceResource": strings(),
            "target": string(), "targetResource": strings(),
        },
    });
    let status = object(&json!({
        "successMessages": int64(), "failMessages": int64(), "errors": list(&string()),
    }));
    let columns = json!([
        { "name": "Source", "type": "string", "jsonPath": ".spec.source" },
        { "name": "Target", "type": "string", "jsonPath": ".spec.target" },
        { "name": "Succeeded", "type": "integer", "jsonPath": ".status.successMessages" },
        { "name": "Failed", "type": "integer", "jsonPath": ".status.failMessages" },
        { "name": "Error", "type": "string", "jsonPath": ".status.errors[0]", "priority": 1 },
        { "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" },
    ]);
    let schema = json!({ "spec": spec, "status": status });
    let of = (crate::rules::GROUP, "v1");
    definition_of(of, "rules", "rule", "Rule", &schema, &columns)
}

fn rule_endpoints() -> Value {
    let spec = json!({
        "type": "object",
        "required": ["ruleEndpointType"],
        "properties": {
            "ruleEndpointType": { "type": "string", "enum": ["rest", "eventbus", "servicebus"] },
            "properties": strings(),
        },
    });
    let columns = json!([
        { "name": "Type", "type": "string", "jsonPath": ".spec.ruleEndpointType" },
        { "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" },
    ]);
    let schema = json!({ "spec": spec, "status": free() });
    let of = (crate::rules::GROUP, "v1");
    let mut made = definition_of(
        of,
        "ruleendpoints",
        "ruleendpoint",
        "RuleEndpoint",
        &schema,
        &columns,
    );
    made["spec"]["names"]["shortNames"] = json!(["re"]);
    made
}

fn device_statuses() -> Value {
    let twin = json!({
        "type": "object",
        "required": ["propertyName"],
        "properties": {
            "propertyName": string(),
            "reported": twin_value(),
            "observedDesired": twin_value(),
        },
    });
    let status = object(&json!({
        "twins": list(&twin),
        "state": string(),
        "lastOnlineTime": string(),
        "extensions": free(),
    }));
    let columns = json!([
        { "name": "State", "type": "string", "jsonPath": ".status.state" },
        { "name": "LastOnline", "type": "string", "jsonPath": ".status.lastOnlineTime" },
        { "name": "Received", "type": "integer",
          "jsonPath": ".status.extensions.outpost.received" },
        { "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" },
    ]);
    let schema = json!({ "spec": free(), "status": status });
    definition(
        "devicestatuses",
        "devicestatus",
        "DeviceStatus",
        &schema,
        &columns,
    )
}
