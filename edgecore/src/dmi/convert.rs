//! Device and DeviceModel objects as mappers get them: JSON in, protobuf out (device plane §3.5,
//! §3.6). Total: what is missing or of another type is left out.
//!
//! A protocol, a property's desired value and its visitors with their configuration are always
//! there, if empty: KubeEdge's mapper-framework reads through them without asking and ends the
//! mapper's process where one is missing (`pkg/util/parse/grpc.go`).

use std::collections::BTreeMap;

use ::dmi::v1beta1 as pb;
use ::dmi::{Scalar, pack};
use prost_types::Any;
use serde_json::{Map, Value};

/// The device, with what its model says merged in, and the desired values in force.
pub(super) fn device(
    object: &Value,
    model: Option<&Value>,
    desired: &BTreeMap<String, String>,
) -> pb::Device {
    let spec = &object["spec"];
    let metadata = &object["metadata"];
    let status = if spec["stateReport"].is_object() {
        &spec["stateReport"]
    } else {
        &object["status"]
    };
    pb::Device {
        name: text(metadata, "name"),
        namespace: text(metadata, "namespace"),
        spec: Some(pb::DeviceSpec {
            device_model_reference: text(&spec["deviceModelRef"], "name"),
            protocol: Some(protocol(&spec["protocol"], model)),
            properties: list(spec, "properties")
                .filter(|given| flaw(given, model).is_none())
                .map(|given| property(given, model, desired))
                .collect(),
            methods: list(spec, "methods").map(method).collect(),
        }),
        status: Some(pb::DeviceStatus {
            twins: Vec::new(),
            report_to_cloud: flag(status, "reportToCloud"),
            report_cycle: integer(status, "reportCycle"),
        }),
    }
}

/// Properties that [`device`] leaves out, and why: KubeEdge's mapper-framework ends the mapper's
/// process at a property that the model does not have (`device/device.go`, `dataHandler`).
pub(super) fn withheld(object: &Value, model: Option<&Value>) -> BTreeMap<String, String> {
    list(&object["spec"], "properties")
        .filter_map(|given| Some((text(given, "name"), flaw(given, model)?)))
        .collect()
}

/// All properties, if a device is not told of at all.
pub(super) fn all_withheld(object: &Value, reason: &str) -> BTreeMap<String, String> {
    list(&object["spec"], "properties")
        .map(|given| (text(given, "name"), reason.to_owned()))
        .collect()
}

/// Why no mapper can serve a property. A type that the model does not give is none of KubeEdge's
/// concern, and works with what is only read.
fn flaw(given: &Value, model: Option<&Value>) -> Option<String> {
    let (model, name) = (model?, text(given, "name"));
    let of = text(&model["metadata"], "name");
    let Some(property) = of_model(model, &name) else {
        return Some(format!("model {of} has no property {name}"));
    };
    let kind = text(property, "type");
    let is_known = TYPES.iter().any(|known| known.eq_ignore_ascii_case(&kind));
    (!kind.is_empty() && !is_known)
        .then(|| format!("model {of} has property {name} of the unknown type {kind}"))
}

/// `spec.properties[].type` of a DeviceModel.
const TYPES: [&str; 7] = [
    "INT", "FLOAT", "DOUBLE", "STRING", "BOOLEAN", "BYTES", "STREAM",
];

fn of_model<'a>(model: &'a Value, name: &str) -> Option<&'a Value> {
    list(&model["spec"], "properties").find(|property| property["name"].as_str() == Some(name))
}

/// The model. Visitors and protocol defaults have no field; they reach the mapper in its devices.
pub(super) fn model(object: &Value) -> pb::DeviceModel {
    let property = |given: &Value| pb::ModelProperty {
        name: text(given, "name"),
        description: text(given, "description"),
        r#type: text(given, "type"),
        access_mode: text(given, "accessMode"),
        minimum: text(given, "minimum"),
        maximum: text(given, "maximum"),
        unit: text(given, "unit"),
    };
    pb::DeviceModel {
        name: text(&object["metadata"], "name"),
        namespace: text(&object["metadata"], "namespace"),
        spec: Some(pb::DeviceModelSpec {
            properties: list(&object["spec"], "properties").map(property).collect(),
            commands: Vec::new(),
        }),
    }
}

fn protocol(given: &Value, model: Option<&Value>) -> pb::ProtocolConfig {
    let defaults = model.map(|model| &model["spec"]["protocolConfigData"]);
    pb::ProtocolConfig {
        protocol_name: text(given, "protocolName"),
        config_data: Some(merged(defaults, &given["configData"])),
    }
}

fn property(
    given: &Value,
    model: Option<&Value>,
    desired: &BTreeMap<String, String>,
) -> pb::DeviceProperty {
    let name = text(given, "name");
    let of_model = model
        .and_then(|model| of_model(model, &name))
        .map(|property| &property["visitors"])
        .filter(|visitors| visitors.is_object());
    pb::DeviceProperty {
        desired: Some(wish(&given["desired"], desired.get(&name))),
        visitors: Some(visitors(&given["visitors"], of_model)),
        report_cycle: integer(given, "reportCycle"),
        collect_cycle: integer(given, "collectCycle"),
        report_to_cloud: flag(given, "reportToCloud"),
        push_method: given["pushMethod"]
            .is_object()
            .then(|| push_method(&given["pushMethod"])),
        name,
    }
}

/// The desired value in force on this node, with the object's metadata; empty if there is none.
fn wish(given: &Value, in_force: Option<&String>) -> pb::TwinProperty {
    pb::TwinProperty {
        value: in_force.map_or_else(|| text(given, "value"), Clone::clone),
        metadata: texts(&given["metadata"]),
    }
}

/// A model's visitor replaces the device's, protocol name included; then the device's own keys
/// override one by one.
fn visitors(given: &Value, of_model: Option<&Value>) -> pb::VisitorConfig {
    let under = of_model.map(|visitor| &visitor["configData"]);
    pb::VisitorConfig {
        protocol_name: text(of_model.unwrap_or(given), "protocolName"),
        config_data: Some(merged(under, &given["configData"])),
    }
}

/// Free-form configuration, top-level keys of `over` winning.
fn merged(under: Option<&Value>, over: &Value) -> pb::CustomizedValue {
    let layers = [under, Some(over)].into_iter().flatten();
    let data = layers.filter_map(Value::as_object).flat_map(packed);
    pb::CustomizedValue {
        data: data.collect(),
    }
}

fn packed(map: &Map<String, Value>) -> impl Iterator<Item = (String, Any)> {
    map.iter()
        .filter_map(|(key, value)| Some((key.clone(), pack(&scalar(value)?))))
}

/// Numbers as KubeEdge sends them, floats of 32 bits, unless that would change a whole number.
/// KubeEdge does not deliver a device with a list or an object in its configuration; here they
/// arrive as the JSON text.
fn scalar(value: &Value) -> Option<Scalar> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(value) => Scalar::Bool(*value),
        Value::String(text) => Scalar::Text(text.clone()),
        Value::Array(_) | Value::Object(_) => Scalar::Text(value.to_string()),
        Value::Number(number) => {
            let wide = number.as_f64()?;
            match number.as_i64() {
                Some(whole) if whole.unsigned_abs() > FLOAT_EXACT_MAX => Scalar::Integer(whole),
                _ => match narrow(wide) {
                    Some(float) => Scalar::Float(float),
                    None => Scalar::Text(number.to_string()),
                },
            }
        }
    })
}

/// Every whole number up to here is a float of 32 bits.
const FLOAT_EXACT_MAX: u64 = 1 << 24;

#[expect(
    clippy::cast_possible_truncation,
    reason = "rounding is what the published interface does; overflow is answered with None"
)]
fn narrow(wide: f64) -> Option<f32> {
    let float = wide as f32;
    float.is_finite().then_some(float)
}

fn method(given: &Value) -> pb::DeviceMethod {
    pb::DeviceMethod {
        name: text(given, "name"),
        description: text(given, "description"),
        property_names: list(given, "propertyNames")
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect(),
    }
}

fn push_method(given: &Value) -> pb::PushMethod {
    let part = |name: &str| Some(&given[name]).filter(|part| part.is_object());
    pb::PushMethod {
        http: part("http").map(|http| pb::PushMethodHttp {
            hostname: text(http, "hostName"),
            port: integer(http, "port"),
            requestpath: text(http, "requestPath"),
            timeout: integer(http, "timeout"),
        }),
        mqtt: part("mqtt").map(|mqtt| pb::PushMethodMqtt {
            address: text(mqtt, "address"),
            topic: text(mqtt, "topic"),
            qos: small(mqtt, "qos"),
            retained: flag(mqtt, "retained"),
        }),
        otel: part("otel").map(|otel| pb::PushMethodOtel {
            endpoint_url: text(otel, "endpointURL"),
        }),
        db_method: part("dbMethod").map(db_method),
        anomaly_detection: given["anomalyDetection"]
            .as_object()
            .map(|free| pb::AnomalyDetection {
                data: packed(free).collect(),
            }),
    }
}

fn db_method(given: &Value) -> pb::DbMethod {
    let part = |name: &str| Some(&given[name]).filter(|part| part.is_object());
    pb::DbMethod {
        influxdb2: part("influxdb2").map(influxdb2),
        redis: part("redis").map(|redis| {
            let client = &redis["redisClientConfig"];
            pb::DbMethodRedis {
                redis_client_config: client.is_object().then(|| pb::RedisClientConfig {
                    addr: text(client, "addr"),
                    db: small(client, "db"),
                    poolsize: small(client, "poolsize"),
                    min_idle_conns: small(client, "minIdleConns"),
                }),
            }
        }),
        tdengine: part("TDEngine").map(|tdengine| {
            let client = &tdengine["TDEngineClientConfig"];
            pb::DbMethodTdEngine {
                td_engine_client_config: client.is_object().then(|| pb::TdEngineClientConfig {
                    addr: text(client, "addr"),
                    dbname: text(client, "dbName"),
                }),
            }
        }),
        mysql: part("mysql").map(|mysql| {
            let client = &mysql["mysqlClientConfig"];
            pb::DbMethodMySql {
                mysql_client_config: client.is_object().then(|| pb::MySqlClientConfig {
                    addr: text(client, "addr"),
                    database: text(client, "database"),
                    user_name: text(client, "userName"),
                }),
            }
        }),
    }
}

fn influxdb2(given: &Value) -> pb::DbMethodInfluxdb2 {
    let client = &given["influxdb2ClientConfig"];
    let data = &given["influxdb2DataConfig"];
    pb::DbMethodInfluxdb2 {
        influxdb2_client_config: client.is_object().then(|| pb::Influxdb2ClientConfig {
            url: text(client, "url"),
            org: text(client, "org"),
            bucket: text(client, "bucket"),
        }),
        influxdb2_data_config: data.is_object().then(|| pb::Influxdb2DataConfig {
            measurement: text(data, "measurement"),
            tag: texts(&data["tag"]),
            field_key: text(data, "fieldKey"),
        }),
    }
}

fn text(object: &Value, key: &str) -> String {
    object[key].as_str().unwrap_or_default().to_owned()
}

fn texts(object: &Value) -> BTreeMap<String, String> {
    let of = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    object
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(of)
        .collect()
}

fn flag(object: &Value, key: &str) -> bool {
    object[key].as_bool().unwrap_or_default()
}

fn integer(object: &Value, key: &str) -> i64 {
    object[key].as_i64().unwrap_or_default()
}

fn small(object: &Value, key: &str) -> i32 {
    i32::try_from(integer(object, key)).unwrap_or_default()
}

fn list<'a>(object: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    object[key].as_array().into_iter().flatten()
}
