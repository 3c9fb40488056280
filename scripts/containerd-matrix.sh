#!/usr/bin/env bash
# Fetches other versions of containerd from Debian's newer releases and unpacks each into a directory of its own, beside
# the machine's containerd and without touching it: target/containerd/<version>/{containerd,ctr,containerd-shim-runc-v2}.
# Prints the directories, separated by colons, for OUTPOST_CONTAINERD_DIRS. A release that cannot be had is left out and
# named on standard error. Idempotent. runc stays the machine's own.
set -euo pipefail
cd "$(dirname "$0")/.."
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
cache=$PWD/target/containerd
mkdir -p "$cache"
found=()
for suite in ${SUITES:-trixie sid}; do
  link=$cache/$suite
  if [ ! -x "$link/containerd" ]; then
    apt=$cache/apt-$suite
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    echo "deb [signed-by=$keyring] $mirror $suite main" >"$apt/sources.list"
    options=(-o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$apt/lists"
      -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root)
    (
      apt-get -qq "${options[@]}" update
      cd "$apt"
      rm -f containerd_*.deb
      apt-get -qq "${options[@]}" download containerd
      version=$(dpkg-deb -f containerd_*.deb Version | sed 's/[~+-].*//')
      rm -rf unpacked
      dpkg -x containerd_*.deb unpacked
      mkdir -p "$cache/$version"
      cp unpacked/usr/bin/{containerd,ctr,containerd-shim-runc-v2} "$cache/$version/"
      ln -sfn "$version" "$link"
    ) >"$apt.log" 2>&1 || { echo "containerd of $suite could not be had, see $apt.log" >&2; continue; }
    rm -rf "$apt"
  fi
  # A binary that needs a newer libc than this machine's is of no use here.
  if "$link/containerd" --version >/dev/null 2>&1; then
    found+=("$(readlink -f "$link")")
  else
    echo "containerd of $suite does not run on this machine" >&2
  fi
done
(
  IFS=:
  echo "${found[*]}"
)
