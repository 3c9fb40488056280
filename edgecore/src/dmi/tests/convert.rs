//! Device plane §3.5 and §3.6.

use std::collections::BTreeMap;

use ::dmi::{Scalar, unpack, v1beta1 as pb};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::dmi::convert;

fn settings(config: Option<&pb::CustomizedValue>) -> BTreeMap<String, Scalar> {
    let data = config.iter().flat_map(|config| &config.data);
    data.map(|(key, any)| (key.clone(), unpack(any).unwrap()))
        .collect()
}

#[test]
fn every_field_has_its_place() {
    let object = json!({
        "metadata": {"namespace": "plant", "name": "thermo-07"},
        "spec": {
            "deviceModelRef": {"name": "thermo"},
            "protocol": {"protocolName": "acme", "configData": {"tty": "/dev/ttyUSB0"}},
            "stateReport": {"reportToCloud": true, "reportCycle": 30000},
            "methods": [{"name": "tune", "description": "d", "propertyNames": ["rate"]}],
            "properties": [{
                "name": "celsius", "collectCycle": 5000, "reportCycle": 6000, "reportToCloud": true,
                "desired": {"value": "5", "metadata": {"type": "int"}},
                "visitors": {"protocolName": "acme", "configData": {"register": "t0"}},
                "pushMethod": {
                    "http": {"hostName": "h", "port": 80, "requestPath": "/p", "timeout": 3},
                    "mqtt": {"address": "tcp://b:1883", "topic": "t", "qos": 1, "retained": true},
                    "otel": {"endpointURL": "http://o"},
                    "anomalyDetection": {"k": "v"},
                    "dbMethod": {
                        "influxdb2": {"influxdb2ClientConfig": {"url": "u", "org": "o", "bucket": "b"},
                                      "influxdb2DataConfig": {"measurement": "m", "tag": {"a": "b"}, "fieldKey": "f"}},
                        "redis": {"redisClientConfig": {"addr": "r", "db": 1, "poolsize": 2, "minIdleConns": 3}},
                        "TDEngine": {"TDEngineClientConfig": {"addr": "t", "dbName": "d"}},
                        "mysql": {"mysqlClientConfig": {"addr": "m", "database": "d", "userName": "u"}},
                    },
                },
            }],
        },
        "status": {"reportToCloud": false, "reportCycle": 1},
    });
    let device = convert::device(&object, None, &BTreeMap::new());
    assert_eq!(
        (device.namespace.as_str(), device.name.as_str()),
        ("plant", "thermo-07")
    );
    let status = device.status.unwrap();
    assert!(status.report_to_cloud);
    assert_eq!(status.report_cycle, 30_000);
    let spec = device.spec.unwrap();
    assert_eq!(spec.device_model_reference, "thermo");
    assert_eq!(spec.methods[0].property_names, ["rate"]);
    let property = &spec.properties[0];
    assert_eq!(
        (property.collect_cycle, property.report_cycle),
        (5000, 6000)
    );
    let desired = property.desired.as_ref().unwrap();
    assert_eq!(
        (desired.value.as_str(), desired.metadata["type"].as_str()),
        ("5", "int")
    );
    let push = property.push_method.as_ref().unwrap();
    assert_eq!(push.http.as_ref().unwrap().requestpath, "/p");
    assert_eq!(push.http.as_ref().unwrap().hostname, "h");
    assert_eq!(push.mqtt.as_ref().unwrap().qos, 1);
    assert_eq!(push.otel.as_ref().unwrap().endpoint_url, "http://o");
    assert_eq!(push.anomaly_detection.as_ref().unwrap().data.len(), 1);
    let db = push.db_method.as_ref().unwrap();
    let influx = db.influxdb2.as_ref().unwrap();
    assert_eq!(influx.influxdb2_client_config.as_ref().unwrap().bucket, "b");
    assert_eq!(influx.influxdb2_data_config.as_ref().unwrap().tag["a"], "b");
    let redis = db.redis.as_ref().unwrap().redis_client_config.as_ref();
    assert_eq!(redis.unwrap().min_idle_conns, 3);
    let tdengine = db
        .tdengine
        .as_ref()
        .unwrap()
        .td_engine_client_config
        .as_ref();
    assert_eq!(tdengine.unwrap().dbname, "d");
    let mysql = db.mysql.as_ref().unwrap().mysql_client_config.as_ref();
    assert_eq!(mysql.unwrap().user_name, "u");
    // The status of old objects counts where `stateReport` is missing.
    let old = json!({"metadata": {}, "spec": {}, "status": {"reportCycle": 7}});
    let old = convert::device(&old, None, &BTreeMap::new());
    assert_eq!(old.status.unwrap().report_cycle, 7);
}

#[test]
fn numbers_keep_their_value_and_stock_mappers_can_read_them() {
    let config = json!({
        "port": 502, "negative": -3, "half": 0.5, "tenth": 0.1, "edge": 16_777_216,
        "odd": 16_777_217, "serial": 9_007_199_254_740_993_i64, "huge": 1e300,
        "on": true, "text": "9600", "list": [1], "none": null, "data": "kept",
    });
    let object = json!({"spec": {"protocol": {"configData": config}}});
    let device = convert::device(&object, None, &BTreeMap::new());
    let protocol = device.spec.unwrap().protocol.unwrap();
    let found = settings(protocol.config_data.as_ref());
    for (key, expected) in [
        ("port", Scalar::Float(502.0)),
        ("negative", Scalar::Float(-3.0)),
        ("half", Scalar::Float(0.5)),
        ("tenth", Scalar::Float(0.1)),
        ("edge", Scalar::Float(16_777_216.0)),
        ("odd", Scalar::Integer(16_777_217)),
        ("serial", Scalar::Integer(9_007_199_254_740_993)),
        ("huge", Scalar::Text("1e+300".into())),
        ("on", Scalar::Bool(true)),
        ("text", Scalar::Text("9600".into())),
        ("list", Scalar::Text("[1]".into())),
        ("data", Scalar::Text("kept".into())),
    ] {
        assert_eq!(found.get(key), Some(&expected), "{key}");
    }
    assert!(!found.contains_key("none"));
}

/// A stock mapper ends at the first of these that is missing.
#[test]
fn what_stock_mappers_read_without_asking_is_always_there() {
    let object = json!({"spec": {"properties": [{"name": "a"}, {"name": "b", "visitors": {}}]}});
    let device = convert::device(&object, None, &BTreeMap::new());
    let spec = device.spec.unwrap();
    assert_eq!(spec.protocol.unwrap().protocol_name, "");
    assert_eq!(spec.properties.len(), 2);
    for property in spec.properties {
        assert_eq!(property.desired, Some(pb::TwinProperty::default()));
        let visitors = property.visitors.unwrap();
        assert_eq!(visitors.config_data, Some(pb::CustomizedValue::default()));
        assert_eq!(property.push_method, None);
    }
}

#[test]
fn the_model_is_merged_in_and_the_device_overrides_it() {
    let model = json!({"metadata": {"namespace": "n", "name": "m"}, "spec": {
    "protocolConfigData": {"baud": "9600", "parity": "even"},
    "properties": [
        {"name": "a", "type": "INT", "accessMode": "ReadOnly",
         "visitors": {"protocolName": "of-model", "configData": {"offset": "1", "scale": "2"}}},
        {"name": "b", "type": "string"}, {"name": "c"}, {"name": "e", "type": "FISH"},
        {"name": "only-in-model", "type": "INT", "visitors": {"configData": {}}},
    ]}});
    let device = json!({"metadata": {}, "spec": {
    "protocol": {"protocolName": "acme", "configData": {"parity": "odd", "tty": "x"}},
    "properties": [
        {"name": "a", "visitors": {"protocolName": "own", "configData": {"scale": "3"}}},
        {"name": "b", "visitors": {"protocolName": "own", "configData": {"k": "v"}}},
        {"name": "c"}, {"name": "d"}, {"name": "e"},
    ]}});
    let in_force = BTreeMap::from([("c".to_owned(), "7".to_owned())]);
    let found = convert::device(&device, Some(&model), &in_force)
        .spec
        .unwrap();
    let text = |text: &str| Scalar::Text(text.into());
    let protocol = found.protocol.unwrap();
    assert_eq!(
        settings(protocol.config_data.as_ref()),
        BTreeMap::from([
            ("baud".into(), text("9600")),
            ("parity".into(), text("odd")),
            ("tty".into(), text("x")),
        ])
    );
    let names: Vec<_> = found.properties.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"], "nothing is added");
    let found_withheld = convert::withheld(&device, Some(&model));
    let reason = |name: &str| found_withheld.get(name).map(String::as_str);
    assert_eq!(reason("d"), Some("model m has no property d"));
    let unknown = "model m has property e of the unknown type FISH";
    assert_eq!(reason("e"), Some(unknown));
    assert_eq!(found_withheld.len(), 2, "{found_withheld:?}");
    assert!(convert::withheld(&device, None).is_empty());
    let a = found.properties[0].visitors.as_ref().unwrap();
    assert_eq!(a.protocol_name, "of-model");
    assert_eq!(
        settings(a.config_data.as_ref()),
        BTreeMap::from([("offset".into(), text("1")), ("scale".into(), text("3"))])
    );
    let b = found.properties[1].visitors.as_ref().unwrap();
    assert_eq!(b.protocol_name, "own");
    let wish = found.properties[2].desired.as_ref().unwrap();
    assert_eq!(wish.value, "7", "what is in force here");
    let sent = convert::model(&model);
    assert_eq!(sent.spec.unwrap().properties.len(), 5);
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z]{0,4}".prop_map(Value::from),
    ];
    let keys = prop::sample::select(vec![
        "metadata",
        "name",
        "spec",
        "protocol",
        "protocolName",
        "configData",
        "properties",
        "visitors",
        "desired",
        "value",
        "pushMethod",
        "mqtt",
        "dbMethod",
        "status",
        "methods",
    ]);
    leaf.prop_recursive(5, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(keys.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_document_is_too_strange(device in json_value(), model in json_value()) {
        let first = convert::device(&device, Some(&model), &BTreeMap::new());
        prop_assert_eq!(first, convert::device(&device, Some(&model), &BTreeMap::new()));
        convert::model(&model);
    }
}
