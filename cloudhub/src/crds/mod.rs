//! The device kinds of KubeEdge, `devices.kubeedge.io/v1beta1`, installed at first start.
//!
//! The schemas are written from the description of the fields (device plane §4.2–§4.4). Members
//! that are free-form keep whatever is in them; everything else that is unknown is pruned and
//! warned about, as by kube-apiserver.

use apiserver::{ApiError, Reason};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    keys::DEVICES_GROUP,
    kube::{Kube, resources, text},
};

/// Which definition this hub made, and the generation that it had then: as long as it has it,
/// nobody else has changed it, and a newer hub may.
const MADE: &str = "outpost.dev/definition";
const MADE_GENERATION: &str = "outpost.dev/generation";

/// Installs what is missing, and brings up to date what an older hub has installed. What others
/// have changed, or brought along, stays theirs.
pub async fn install(kube: &Kube) -> Result<(), ApiError> {
    for definition in [
        devices(),
        device_models(),
        device_statuses(),
        rules(),
        rule_endpoints(),
    ] {
        install_one(kube, definition).await?;
    }
    Ok(())
}

async fn install_one(kube: &Kube, mut definition: Value) -> Result<(), ApiError> {
    let of = resources::definitions();
    let print = hex::encode(Sha256::digest(definition["spec"].to_string()));
    let name = text(&definition, "/metadata/name").to_owned();
    let mark = |generation: i64| json!({ MADE: print, MADE_GENERATION: generation.to_string() });
    definition["metadata"]["annotations"] = mark(1);
    match kube.create(&of, "", definition.clone()).await {
        Ok(_) => return Ok(()),
        Err(error) if error.reason == Reason::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let stored = kube.get(&of, "", &name).await?;
    let made = |key| stored["metadata"]["annotations"][key].as_str();
    let generation = stored["metadata"]["generation"].as_i64().unwrap_or(0);
    let is_ours = made(MADE_GENERATION) == Some(generation.to_string().as_str());
    if !is_ours || made(MADE) == Some(print.as_str()) {
        return Ok(());
    }
    let mut newer = stored.clone();
    newer["spec"] = definition["spec"].take();
    for (key, value) in mark(generation + 1).as_object().into_iter().flatten() {
        newer["metadata"]["annotations"][key] = value.clone();
    }
    kube.update(&of, "", newer).await?;
    tracing::info!(definition = name, "brought up to date");
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
        "properties": {
            "value": said(string(), "The value as text, whatever the property's type."),
            "metadata": said(strings(), "What is known about it: `timestamp` (Unix milliseconds), `type`."),
        },
    })
}

/// What `kubectl explain` says about a member.
fn said(mut schema: Value, text: &str) -> Value {
    schema["description"] = text.into();
    schema
}

fn devices() -> Value {
    let property = json!({
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": said(string(), "Name of a property of the model; once in a device."),
            "desired": said(twin_value(), "What the device should make of the property."),
            "visitors": said(visitors(), "How a mapper reaches the property; free-form."),
            "reportCycle": said(int64(), "How often a mapper reports, in milliseconds."),
            "collectCycle": said(int64(), "How often a mapper reads, in milliseconds."),
            "reportToCloud": said(boolean(), "Whether a mapper reports the property to the cloud."),
            "pushMethod": said(push_method(), "Where else a mapper puts the readings."),
        },
    });
    let spec = object(&json!({
        "deviceModelRef": said(
            object(&json!({ "name": said(string(), "Name of a DeviceModel in the same namespace.") })),
            "What kind of device it is."),
        "nodeName": said(string(), "The node that the device is attached to."),
        "protocol": said(
            object(&json!({
                "protocolName": said(string(), "A mapper is given the devices of its protocol; `mqtt` needs none."),
                "configData": said(free(), "How the device is reached; free-form, as the mapper wants it."),
            })),
            "How the device is reached."),
        "properties": {
            "type": "array", "items": property,
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "description": "The properties of the model that this device has, and what is desired of them.",
        },
        "methods": said(
            list(&object(&json!({
                "name": string(), "description": string(), "propertyNames": list(&string()) }))),
            "What a mapper offers by name; each sets some properties."),
        "stateReport": said(
            object(&json!({ "reportToCloud": boolean(), "reportCycle": int64() })),
            "Whether and how often (milliseconds) a mapper reports the device's state."),
    }));
    let columns = json!([
        { "name": "Node", "type": "string", "jsonPath": ".spec.nodeName" },
        { "name": "Model", "type": "string", "jsonPath": ".spec.deviceModelRef.name" },
        { "name": "Protocol", "type": "string", "jsonPath": ".spec.protocol.protocolName",
          "priority": 1 },
        { "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" },
    ]);
    let schema = json!({ "spec": spec, "status": free() });
    let mut made = definition("devices", "device", "Device", &schema, &columns);
    made["spec"]["versions"][0]["selectableFields"] = json!([
        { "jsonPath": ".spec.nodeName" }, { "jsonPath": ".spec.deviceModelRef.name" },
        { "jsonPath": ".spec.protocol.protocolName" },
    ]);
    describe(
        made,
        "A device at a node: where it is, how it is reached and what is desired of it. What it \
         reports is in the DeviceStatus of the same name.",
    )
}

fn describe(mut definition: Value, text: &str) -> Value {
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["description"] = text.into();
    definition
}

fn device_models() -> Value {
    let property = object(&json!({
        "name": said(string(), "Name of the property."),
        "description": said(string(), "For people."),
        "type": { "type": "string", "description": "What the values are.",
                  "enum": ["INT", "FLOAT", "DOUBLE", "STRING", "BOOLEAN", "BYTES", "STREAM"] },
        "accessMode": { "type": "string", "enum": ["ReadWrite", "ReadOnly"],
                        "description": "Whether a value may be desired." },
        "minimum": said(string(), "Least value, as text."),
        "maximum": said(string(), "Largest value, as text."),
        "unit": said(string(), "For people."),
        "visitors": said(visitors(), "How a mapper reaches the property; free-form."),
    }));
    let spec = object(&json!({
        "protocol": said(string(), "The protocol that devices of the kind speak."),
        "protocolConfigData": free(),
        "properties": said(list(&property), "What devices of the kind have."),
    }));
    let columns = json!([
        { "name": "Protocol", "type": "string", "jsonPath": ".spec.protocol" },
        { "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" },
    ]);
    let schema = json!({ "spec": spec, "status": free() });
    let made = definition(
        "devicemodels",
        "devicemodel",
        "DeviceModel",
        &schema,
        &columns,
    );
    describe(
        made,
        "A kind of device: the properties that each of them has.",
    )
}

/// Device plane §4.6. No status subresource, as in KubeEdge.
fn rules() -> Value {
    let spec = json!({
        "type": "object",
        "required": ["source", "sourceResource", "target", "targetResource"],
        "properties": {
            "source": said(string(), "Name of the RuleEndpoint that messages come from."),
            "sourceResource": said(strings(), "rest: `path`. eventbus: `topic`, `node_name`. servicebus: `target_url`, `node_name`."),
            "target": said(string(), "Name of the RuleEndpoint that messages go to."),
            "targetResource": said(strings(), "rest: `resource`, a URL. eventbus: `topic`. servicebus: `path`."),
        },
    });
    let status = object(&json!({
        "successMessages": said(int64(), "Messages that arrived."),
        "failMessages": said(int64(), "Messages that were given up."),
        "errors": said(list(&string()), "The last errors, newest first; `not usable:` asks for a change of the rule."),
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
    let made = definition_of(of, "rules", "rule", "Rule", &schema, &columns);
    describe(
        made,
        "Hands messages from one endpoint to another: from or to MQTT and HTTP of nodes.",
    )
}

fn rule_endpoints() -> Value {
    let spec = json!({
        "type": "object",
        "required": ["ruleEndpointType"],
        "properties": {
            "ruleEndpointType": { "type": "string", "enum": ["rest", "eventbus", "servicebus"],
                "description": "rest: HTTP in the cloud. eventbus: MQTT of nodes. servicebus: HTTP services of nodes." },
            "properties": said(strings(), "servicebus: `service_port`."),
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
    describe(made, "Where messages of rules come from and go to.")
}

fn device_statuses() -> Value {
    let twin = json!({
        "type": "object",
        "required": ["propertyName"],
        "properties": {
            "propertyName": said(string(), "Name of the property."),
            "reported": said(twin_value(), "What the device said last."),
            "observedDesired": said(twin_value(), "The desired value that the node has."),
        },
    });
    let status = object(&json!({
        "twins": said(list(&twin), "What is known of each property."),
        "state": said(string(), "What the device or its mapper says: online, offline, ok, unhealthy ..."),
        "lastOnlineTime": said(string(), "When it was online last."),
        "extensions": said(free(), "`outpost`: counts. `outpostProperties`: of each property versions, and how far the desired value has come (`sync`: pending, acknowledged or refused, with `reason`)."),
    }));
    let columns = json!([
        { "name": "State", "type": "string", "jsonPath": ".status.state" },
        { "name": "LastOnline", "type": "string", "jsonPath": ".status.lastOnlineTime" },
        { "name": "Received", "type": "integer",
          "jsonPath": ".status.extensions.outpost.received" },
        { "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" },
    ]);
    let schema = json!({ "spec": free(), "status": status });
    let made = definition(
        "devicestatuses",
        "devicestatus",
        "DeviceStatus",
        &schema,
        &columns,
    );
    describe(
        made,
        "What a device reports; of the Device of the same name. The hub writes it.",
    )
}
