#!/usr/bin/env bash
# Installs what the build, the tests and the demo need on a Debian 12 machine with Rust. Idempotent.
# Rust itself (1.95 or newer, by rustup) is expected. Nothing is started here.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(containerd runc containernetworking-plugins mosquitto mosquitto-clients protobuf-compiler
  busybox-static docker-registry iproute2 iptables jq faketime zstd bsdutils gcc libc6-dev
  python3-venv)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
command -v kubectl >/dev/null || missing+=(kubernetes-client)
command -v npm >/dev/null || missing+=(nodejs npm)

sudo=()
[ "$(id -u)" = 0 ] || sudo=(sudo)
if [ ${#missing[@]} -gt 0 ]; then
  echo "installing: ${missing[*]}"
  log=$(mktemp)
  "${sudo[@]}" apt-get update -qq >"$log" 2>&1 || true
  if ! "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >>"$log" 2>&1; then
    cat "$log" >&2
    echo "setup: apt-get could not install: ${missing[*]}" >&2
    exit 1
  fi
  rm -f "$log"
fi

# Debian's own kubectl beside whatever kubectl the machine has: the tests drive both.
debian_kubectl=target/tools/kubernetes-client/usr/bin/kubectl
if [ ! -x "$debian_kubectl" ]; then
  mkdir -p target/tools
  (
    cd target/tools
    "${sudo[@]}" apt-get update -qq >/dev/null 2>&1 || true
    apt-get download -qq kubernetes-client >/dev/null 2>&1 && dpkg -x kubernetes-client_*.deb kubernetes-client && rm -f kubernetes-client_*.deb
  ) || echo "setup: Debian's kubernetes-client could not be fetched; only $(command -v kubectl) will be driven" >&2
fi

# MQTT clients that the broker is tried with: Eclipse Paho from PyPI, MQTT.js from npm.
if [ ! -x target/tools/paho/bin/python ]; then
  { python3 -m venv target/tools/paho && target/tools/paho/bin/pip install -q 'paho-mqtt>=2.1,<3'; } \
    || { rm -rf target/tools/paho; echo "setup: paho-mqtt could not be fetched; it will not be tried" >&2; }
fi
if [ ! -d target/tools/mqttjs/node_modules ]; then
  mkdir -p target/tools/mqttjs
  npm install --silent --no-audit --no-fund --prefix target/tools/mqttjs mqtt@5 >/dev/null \
    || { rm -rf target/tools/mqttjs; echo "setup: mqtt.js could not be fetched; it will not be tried" >&2; }
fi

command -v cargo >/dev/null || { echo "setup: cargo is missing; install Rust with rustup (https://rustup.rs)" >&2; exit 1; }
