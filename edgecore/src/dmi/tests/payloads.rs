//! Messages of mappers and objects for them, mutated and at random: nothing panics, a refusal says
//! why, and what is valid counts.

use std::collections::BTreeMap;

use ::dmi::v1beta1 as pb;
use ::dmi::{Scalar, pack, unpack};
use proptest::prelude::*;
use prost::Message;
use serde_json::{Value, json};
use wire::topic::DeviceRef;

use crate::dmi::peer::Peer;
use crate::dmi::{convert, report, server};
use crate::store::Db;
use crate::twin;
use crate::twin::payload_tests::{damage, damaged, mutated, mutations};

fn object() -> Value {
    json!({
        "metadata": {"namespace": "dev", "name": "d"},
        "spec": {
            "deviceModelRef": {"name": "m"},
            "protocol": {"protocolName": "acme", "configData": {"tty": "x", "port": 502, "deep": {"a": [1]}}},
            "stateReport": {"reportToCloud": true, "reportCycle": 30000},
            "methods": [{"name": "tune", "propertyNames": ["rate"]}],
            "properties": [
                {"name": "celsius", "collectCycle": 5000, "reportToCloud": true,
                 "visitors": {"protocolName": "acme", "configData": {"register": "t0"}},
                 "pushMethod": {"mqtt": {"address": "tcp://b", "qos": 1}, "http": {"port": 80},
                                "dbMethod": {"mysql": {"mysqlClientConfig": {"addr": "m"}}}}},
                {"name": "rate", "desired": {"value": "5", "metadata": {"type": "int"}}},
            ],
        },
    })
}

fn model() -> Value {
    json!({"metadata": {"namespace": "dev", "name": "m"}, "spec": {
    "protocolConfigData": {"baud": "9600"},
    "properties": [
        {"name": "celsius", "type": "INT", "visitors": {"configData": {"scale": 2}}},
        {"name": "rate", "type": "INT", "accessMode": "ReadWrite"},
    ]}})
}

fn request() -> pb::ReportDeviceStatusRequest {
    let property = |value: &str, kind: &str| pb::TwinProperty {
        value: value.into(),
        metadata: BTreeMap::from([
            ("type".into(), kind.into()),
            ("timestamp".into(), "1700000000123".into()),
        ]),
    };
    let twin = |name: &str, value: &str, kind: &str| pb::Twin {
        property_name: name.into(),
        observed_desired: Some(property("5", "")),
        reported: Some(property(value, kind)),
    };
    pb::ReportDeviceStatusRequest {
        device_name: "d".into(),
        device_namespace: "dev".into(),
        reported_device: Some(pb::DeviceStatus {
            twins: vec![twin("celsius", "21", "int"), twin("rate", "x", "string")],
            ..pb::DeviceStatus::default()
        }),
    }
}

fn node() -> Db {
    let db = Db::open_in_memory().unwrap();
    twin::device_upserted(db.reader(), &object(), 1).unwrap();
    db
}

proptest! {
    // Each opens a database.
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_report_however_damaged_is_stored_or_refused_with_a_reason(damage in damage()) {
        let bytes = damaged(request().encode_to_vec(), &damage);
        let Ok(request) = pb::ReportDeviceStatusRequest::decode(bytes.as_slice()) else {
            return Ok(());
        };
        let db = node();
        let device = DeviceRef::new("dev", "d").unwrap();
        let twins = request.reported_device.unwrap_or_default().twins;
        let sent: BTreeMap<String, pb::Twin> =
            twins.iter().map(|twin| (twin.property_name.clone(), twin.clone())).collect();
        let is_whole = sent.len() == twins.len();
        let (told, refused) = report::status(db.reader(), &device, twins, 2).unwrap();
        let stored = twin::document(db.reader(), "dev", "d").unwrap().unwrap();
        if let Some(refused) = refused {
            prop_assert!(!refused.reason.is_empty());
            return Ok(());
        }
        for (name, twin) in sent.into_iter().filter(|_| is_whole) {
            let Some(reported) = twin.reported else { continue };
            let found = stored.properties[&name].reported.clone();
            prop_assert_eq!(found.unwrap().value, reported.value);
            prop_assert!(told.queued);
        }
    }

    #[test]
    fn any_registration_is_taken_or_refused_in_words(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        address in prop::collection::vec(any::<u8>(), 0..120),
        name in "\\PC{0,300}",
        protocol in "\\PC{0,300}",
    ) {
        drop(pb::MapperRegisterRequest::decode(bytes.as_slice()));
        drop(pb::ReportDeviceStatesRequest::decode(bytes.as_slice()));
        let info = pb::MapperInfo { name, protocol, address, ..pb::MapperInfo::default() };
        match server::mapper(info.clone(), Peer { uid: 0, pid: None }) {
            Ok(read) => {
                prop_assert!(!info.protocol.is_empty() && (1..=253).contains(&read.name.len()));
                prop_assert!(read.address.is_empty() || read.address.starts_with('/'));
            }
            Err(status) => prop_assert!(!status.message().is_empty()),
        }
    }

    #[test]
    fn of_an_object_all_goes_to_the_mapper_or_is_withheld(
        of_device in mutations(),
        of_model in mutations(),
    ) {
        let (object, model) = (mutated(object(), &of_device), mutated(model(), &of_model));
        let sent = convert::device(&object, Some(&model), &BTreeMap::new());
        let withheld = convert::withheld(&object, Some(&model));
        let again = pb::Device::decode(sent.encode_to_vec().as_slice()).unwrap();
        prop_assert_eq!(&again, &sent);
        let spec = sent.spec.unwrap();
        let named: Vec<&String> = spec.properties.iter().map(|one| &one.name).collect();
        for property in object["spec"]["properties"].as_array().into_iter().flatten() {
            let name = property["name"].as_str().unwrap_or_default().to_owned();
            prop_assert_ne!(named.contains(&&name), withheld.contains_key(&name), "{}", name);
        }
        // What a stock mapper reads without asking.
        prop_assert!(spec.protocol.is_some_and(|protocol| protocol.config_data.is_some()));
        for property in spec.properties {
            prop_assert!(property.desired.is_some());
            prop_assert!(property.visitors.is_some_and(|visitors| visitors.config_data.is_some()));
        }
        let known = convert::model(&model);
        let again = pb::DeviceModel::decode(known.encode_to_vec().as_slice()).unwrap();
        prop_assert_eq!(again, known);
    }

    #[test]
    fn a_setting_comes_back_and_any_bytes_are_one_or_none(
        text in "\\PC{0,20}",
        whole in any::<i64>(),
        float in any::<f32>().prop_filter("a number", |float| !float.is_nan()),
        kind in prop::sample::select(vec!["StringValue", "BoolValue", "FloatValue", "DoubleValue",
                                          "Int64Value", "Int32Value", "UInt32Value", "Any", ""]),
        value in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        for scalar in [Scalar::Text(text), Scalar::Integer(whole), Scalar::Float(float)] {
            prop_assert_eq!(unpack(&pack(&scalar)), Some(scalar));
        }
        let type_url = format!("type.googleapis.com/google.protobuf.{kind}");
        let any = prost_types::Any { type_url, value };
        drop(unpack(&any));
    }
}
