"""Eclipse Paho against a broker: every QoS, retained, will, persistent session, MQTT 5 properties.

One JSON object as the argument: host, port, transport (tcp, websockets), version (4, 5), and
optionally ca, cert, key, user, password. Prints `ok` or dies.
"""

import json
import queue
import ssl
import sys
import uuid

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

ARGS = json.loads(sys.argv[1])
V5 = ARGS["version"] == 5
ROOT = f"matrix/{uuid.uuid4().hex}"
PATIENCE = 20


class Client:
    def __init__(self, name, clean=True, will=None):
        self.messages, self.events = queue.Queue(), queue.Queue()
        options = {} if V5 else {"clean_session": clean}
        self.client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id=f"{ROOT}-{name}",
            transport=ARGS["transport"],
            protocol=mqtt.MQTTv5 if V5 else mqtt.MQTTv311,
            reconnect_on_failure=False,
            **options,
        )
        if ARGS.get("user"):
            self.client.username_pw_set(ARGS["user"], ARGS["password"])
        if ARGS.get("ca"):
            self.client.tls_set(
                ca_certs=ARGS["ca"],
                certfile=ARGS.get("cert"),
                keyfile=ARGS.get("key"),
                cert_reqs=ssl.CERT_REQUIRED,
            )
        if will:
            self.client.will_set(will, b"gone", qos=1)
        self.client.on_message = lambda c, u, message: self.messages.put(message)
        self.client.on_connect = lambda c, u, flags, code, props: self.events.put((flags, code))
        self.client.on_subscribe = lambda c, u, mid, codes, props: self.events.put(codes)
        kwargs = {}
        if V5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 0 if clean else 600
            kwargs = {"clean_start": clean, "properties": properties}
        self.client.connect(ARGS["host"], ARGS["port"], 30, **kwargs)
        self.client.loop_start()
        flags, code = self.events.get(timeout=PATIENCE)
        assert not code.is_failure, code
        self.session_present = flags.session_present

    def subscribe(self, topic, qos):
        self.client.subscribe(topic, qos)
        codes = self.events.get(timeout=PATIENCE)
        assert codes[0].value == qos, codes

    def publish(self, topic, payload, qos, retain=False, properties=None):
        info = self.client.publish(topic, payload, qos, retain, properties)
        info.wait_for_publish(PATIENCE)
        assert info.is_published(), topic

    def get(self):
        return self.messages.get(timeout=PATIENCE)

    def stop(self):
        self.client.disconnect()
        self.client.loop_stop()


publisher = Client("publisher")
reader = Client("reader")
reader.subscribe(f"{ROOT}/live/#", 2)
for qos in (0, 1, 2):
    for size in (0, 100, 60_000):
        publisher.publish(f"{ROOT}/live/{qos}", b"x" * size, qos)
        message = reader.get()
        assert (message.qos, len(message.payload)) == (qos, size), message
        assert message.topic == f"{ROOT}/live/{qos}" and not message.retain

publisher.publish(f"{ROOT}/kept", b"kept", 1, retain=True)
reader.subscribe(f"{ROOT}/kept", 1)
message = reader.get()
assert message.retain and message.payload == b"kept"
publisher.publish(f"{ROOT}/kept", b"", 1, retain=True)
assert reader.get().payload == b""

if V5:
    properties = Properties(PacketTypes.PUBLISH)
    properties.MessageExpiryInterval = 60
    properties.UserProperty = ("unit", "C")
    properties.ResponseTopic = f"{ROOT}/answers"
    properties.CorrelationData = b"7"
    properties.TopicAlias = 3
    publisher.publish(f"{ROOT}/live/props", b"p", 1, properties=properties)
    got = reader.get().properties
    assert got.UserProperty == [("unit", "C")] and got.ResponseTopic == f"{ROOT}/answers"
    assert got.CorrelationData == b"7" and 0 < got.MessageExpiryInterval <= 60
    assert not hasattr(got, "TopicAlias")

reader.subscribe(f"{ROOT}/will", 1)
mortal = Client("mortal", will=f"{ROOT}/will")
mortal.client.loop_stop()
mortal.client.socket().close()
assert reader.get().payload == b"gone"

sleeper = Client("sleeper", clean=False)
assert not sleeper.session_present
sleeper.subscribe(f"{ROOT}/later", 1)
sleeper.stop()
for n in range(20):
    publisher.publish(f"{ROOT}/later", str(n), 1)
sleeper = Client("sleeper", clean=False)
assert sleeper.session_present
assert [int(sleeper.get().payload) for _ in range(20)] == list(range(20))
sleeper.stop()
Client("sleeper", clean=True).stop()
for client in (publisher, reader):
    client.stop()
print("ok")
