#!/usr/bin/env bash
# Installs the real clients of the tests beside this file: install.sh [DIR]
# Each client has a folder of its own, with a stamp of what it was installed from; a second run that
# finds the stamps installs nothing.
set -euo pipefail

# What is installed, one pin per line.
claude_code="@anthropic-ai/claude-code@2.1.329"
typescript_sdk_old="@anthropic-ai/sdk@0.33.0" # the first with models and countTokens outside the beta; node-fetch
typescript_sdk="@anthropic-ai/sdk@1.11.0"
python_sdk_old="anthropic==0.42.0" # the first with models and count_tokens outside the beta
python_sdk_old_httpx="httpx==0.27.2" # 0.42.0 passes an argument that httpx 0.28 took away
python_sdk_x_api_key="anthropic==0.125.0" # the last one before 1.0, speaks 2023-06-01
python_sdk_current="anthropic==2.11.0"
openai_python_old="openai==1.109.1" # the last one before 2.0
openai_python_current="openai==3.52.0"
openai_typescript_old="openai@4.104.0" # the last one before 5.0, and the last on node-fetch
openai_typescript="openai@7.57.0"
browser_driver="playwright-core@1.64.1"
# Of these Debian has but one release, which cannot be pinned; a browser of its own is more than playwright
# may download on every machine.
browser="chromium"
plain_proxy="tinyproxy" # the package tinyproxy-bin is the program without its service
prometheus_client="prometheus_client==0.26.0"
dashboard_checker="axe-core@4.14.1"
type_checker="pyright@1.1.414"
version_checker="vermin==1.9.2"
terminal="pyte==0.8.2"
signing_proxy="mitmproxy==11.0.2" # the last one for Python 3.10 and 3.11

dir="${1:-${CLAUDE_GATEWAY_CLIENTS:-${TMPDIR:-/tmp}/claude_gateway_clients}}"
mkdir -p "$dir"
dir="$(cd "$dir" && pwd)"

# up_to_date NAME PINS...: whether that folder was finished from exactly these pins.
up_to_date() {
  local name="$1"
  shift
  [ -f "$dir/$name/.installed" ] && [ "$(cat "$dir/$name/.installed")" = "$*" ]
}

# begin NAME: an empty folder; what an interrupted run left is never built upon.
begin() {
  printf 'installing %s into %s\n' "$1" "$dir/$1"
  rm -rf "${dir:?}/$1"
  mkdir -p "$dir/$1"
}

install_npm() {
  local name="$1" package="$2"
  up_to_date "$name" "$package" && return
  begin "$name"
  # A package.json of its own keeps npm from climbing to one in a folder above.
  printf '{"private": true}\n' > "$dir/$name/package.json"
  npm install --prefix "$dir/$name" --no-audit --no-fund --no-update-notifier --loglevel=error "$package"
  printf '%s\n' "$package" > "$dir/$name/.installed"
}

install_python() {
  local name="$1"
  shift
  up_to_date "$name" "$@" && return
  begin "$name"
  "${PYTHON:-python3}" -m venv "$dir/$name"
  "$dir/$name/bin/python" -m pip install -q -q --disable-pip-version-check --no-input "$@"
  printf '%s\n' "$*" > "$dir/$name/.installed"
}

# install_debian COMMAND [PACKAGE]: what Debian calls otherwise than its command.
install_debian() {
  local package="${2:-$1}"
  PATH="$PATH:/usr/sbin" command -v "$1" > /dev/null && return
  if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
    printf '%s cannot be installed without root and apt-get: its tests will miss it\n' "$package"
    return
  fi
  printf 'installing %s with apt-get\n' "$package"
  [ -n "${lists_updated:-}" ] || apt-get update -qq
  lists_updated=1
  (
    # What is a server is not to be started; the images of containers have such a policy already.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
      trap 'rm -f "$policy"' EXIT
      printf '#!/bin/sh\nexit 101\n' > "$policy"
      chmod +x "$policy"
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" > /dev/null
  )
}

# What drives the dashboard's browser, and what looks at it as a screen reader would.
install_dashboard() {
  up_to_date dashboard "$browser_driver" "$dashboard_checker" && return
  begin dashboard
  printf '{"private": true}\n' > "$dir/dashboard/package.json"
  npm install --prefix "$dir/dashboard" --no-audit --no-fund --no-update-notifier --loglevel=error \
    "$browser_driver" "$dashboard_checker"
  printf '%s\n' "$browser_driver $dashboard_checker" > "$dir/dashboard/.installed"
}

# By far the slowest: beside all the others it costs nobody any time.
install_python mitmproxy "$signing_proxy" &
slowest=$!
install_npm claude-code "$claude_code"
install_npm sdk-typescript-old "$typescript_sdk_old"
install_npm sdk-typescript "$typescript_sdk"
install_python sdk-python-old "$python_sdk_old" "$python_sdk_old_httpx"
install_python sdk-python-0.125 "$python_sdk_x_api_key"
install_python sdk-python-current "$python_sdk_current"
install_npm openai-typescript-old "$openai_typescript_old"
install_npm openai-typescript "$openai_typescript"
install_python openai-python-old "$openai_python_old"
install_python openai-python-current "$openai_python_current"
install_npm browser "$browser_driver"
install_debian "$browser" "$browser"
install_debian "$plain_proxy" "$plain_proxy-bin"
install_python prometheus "$prometheus_client"
# Balancers and systemd as Debian has them: its releases are what the README's files are for.
install_debian nginx nginx-light
install_debian haproxy
install_debian systemd-analyze systemd
install_python terminal "$terminal"
install_dashboard
install_npm pyright "$type_checker"
install_python vermin "$version_checker"
wait "$slowest"

# version NAME COMMAND...: a native binary for another platform installs well and does not run, so each
# client has to say its version.
version() {
  local name="$1" said
  shift
  said="$("$@")"
  [ -n "$said" ]
  printf '%s: %s\n' "$name" "$said"
}

version claude-code "$dir/claude-code/node_modules/.bin/claude" --version
for name in sdk-typescript-old sdk-typescript; do
  cd "$dir/$name" # node looks for the package from here
  version "$name" node -p 'require("@anthropic-ai/sdk/version").VERSION'
done
for name in sdk-python-old sdk-python-0.125 sdk-python-current; do
  version "$name" "$dir/$name/bin/python" -c 'import anthropic; print(anthropic.__version__)'
done
for name in openai-python-old openai-python-current; do
  version "$name" "$dir/$name/bin/python" -c 'import openai; print(openai.__version__)'
done
for name in openai-typescript-old openai-typescript; do
  cd "$dir/$name"
  version "$name" node -p 'require("openai/version").VERSION'
done
if command -v "$browser" > /dev/null; then
  version browser "$browser" --version
fi
if command -v "$plain_proxy" > /dev/null; then
  version tinyproxy "$plain_proxy" -v
fi
for name in prometheus=prometheus_client terminal=pyte mitmproxy=mitmproxy; do
  version "${name%=*}" "$dir/${name%=*}/bin/python" -c \
    "import importlib.metadata; print(importlib.metadata.version('${name#*=}'))"
done
version pyright "$dir/pyright/node_modules/.bin/pyright" --version
version vermin "$dir/vermin/bin/vermin" --version
PATH="$PATH:/usr/sbin"
for name in nginx haproxy; do
  if command -v "$name" > /dev/null; then
    version "$name" sh -c '"$0" -v 2>&1 | head -n 1' "$name"
  fi
done
cd "$dir/dashboard"
version axe-core node -p 'require("axe-core").version'
