#!/usr/bin/env bash
# Install what tests/containers needs, on Debian 12 as root: Apptainer, and a registry for loopback with the tools
# that fill it. Quick where they are already there.
#
# Debian 12 has no Apptainer: its package is taken from Debian's unstable branch, from the mirror that this machine's
# own sources name, and unpacked into /opt/apptainer with its own C library beside it, so that nothing of the system
# changes. Everything is signed by Debian's archive key.
set -euo pipefail
tools=(docker-registry skopeo umoci mmdebstrap)
missing() {
  local tool
  for tool in "$@"; do command -v "$tool" >/dev/null || return 0; done
  return 1
}
missing apptainer "${tools[@]}" || exit 0
. /etc/os-release
if [ "$ID" != debian ] || [ "$(id -u)" != 0 ] || [ "$(dpkg --print-architecture)" != amd64 ]; then
  echo "containers/test-tools.sh: installs on Debian as root on amd64 alone, this is ${PRETTY_NAME:-$ID} as $(id -un);" \
    "install apptainer ${tools[*]} by hand" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -y -qq --no-install-recommends "$@" >/dev/null; }
apt-get update -qq
! missing "${tools[@]}" || install "${tools[@]}"
! missing apptainer || {
  prefix=/opt/apptainer
  work=$(mktemp -d)
  trap 'rm -rf -- "$work"' EXIT
  mkdir -p "$work"/lists/partial "$work"/cache/archives/partial "$work"/parts
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | sed -n 1p)
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >"$work/sources.list"
  aside=(-o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" -o "Dir::Etc::sourcelist=$work/sources.list"
    -o "Dir::Etc::sourceparts=$work/parts" -o APT::Sandbox::User=root)
  apt-get "${aside[@]}" -qq update
  (cd "$work" && apt-get "${aside[@]}" -qq download apptainer libc6)
  install patchelf squashfs-tools uidmap libseccomp2 libsqlite3-0 squashfuse fuse3 fuse2fs
  dpkg-deb -x "$work"/apptainer_*.deb "$work/apptainer"
  dpkg-deb -x "$work"/libc6_*.deb "$work/libc"
  rm -rf "$prefix"
  mkdir -p "$prefix/glibc"
  cp -a "$work/apptainer/usr/." "$prefix/"
  cp -a "$work/apptainer/etc" "$prefix/etc"
  cp -a "$work"/libc/usr/lib/x86_64-linux-gnu/{ld-linux-x86-64.so.2,lib*.so.*} "$prefix/glibc/"
  for program in bin/apptainer lib/x86_64-linux-gnu/apptainer/bin/starter; do
    # a plain RUNPATH would not reach the libraries of libraries
    patchelf --force-rpath --set-interpreter "$prefix/glibc/ld-linux-x86-64.so.2" \
      --set-rpath "$prefix/glibc:/usr/lib/x86_64-linux-gnu" "$prefix/$program"
  done
  # the starter takes PREFIX/lib for its prefix
  mkdir -p "$prefix/var/lib/apptainer/mnt/session" "$prefix/lib/var/lib/apptainer/mnt/session"
  ln -sfn ../etc "$prefix/lib/etc"
  # the root of a container of its own cannot hand on all capabilities
  sed -i 's/^root default capabilities = full/root default capabilities = no/' "$prefix/etc/apptainer/apptainer.conf"
  for file in /etc/subuid /etc/subgid; do grep -q ^root: "$file" || echo root:100000:65536 >>"$file"; done
  [ ! -e /dev/fuse ] || chmod 666 /dev/fuse
  ln -sfn "$prefix/bin/apptainer" /usr/local/bin/apptainer
  apptainer --version
}
