#!/usr/bin/env bash
# Builds wasm/kernels/ and writes wasm/kernels_bytes.ts, wasm/kernels.hash and tests/data/kernels_checked.wasm; builds
# bench/ceilings/ and writes bench/ceilings_*.wasm.
# Needs cargo with the standard library for wasm32-unknown-unknown: `rustup target add wasm32-unknown-unknown` once, or,
# where rustup can't download, Debian's packages rustc-web cargo-web rust-web-src lld-19 (installed here as root).
# `--check` only compares the source hash. WASM_OPT=path runs that binaryen over the modules; the committed ones are not.
set -euo pipefail
# A build that fails inside $(…) ends the script too.
shopt -s inherit_errexit
export LC_ALL=C
root=$(cd "$(dirname "$0")/.." && pwd)
crate=$root/wasm/kernels
target=wasm32-unknown-unknown
cache=${RUST_WASM_CACHE:-$HOME/.cache/rust-wasm}

source_hash() {
  (cd "$crate" && for file in Cargo.lock Cargo.toml build.rs src/*.rs; do printf '%s\n' "$file"; cat "$file"; done) |
    sha256sum | cut -d' ' -f1
}

if [ "${1:-}" = --check ]; then
  grep -q "^source $(source_hash)\$" "$root/wasm/kernels.hash" && exit 0
  echo "wasm/kernels/ has changed since the modules were built: run tools/build_wasm.sh" >&2
  exit 1
fi

has_target() { ls "$(rustc --print sysroot 2>/dev/null)/lib/rustlib/$target/lib/"libstd-*.rlib >/dev/null 2>&1; }

# Debian ships rustc with the sources of std, but no std for WebAssembly: build it once, from the vendored crates, into
# a sysroot of our own.
build_std() (
  local source=/usr/lib/rustlib/src/rust/library host build lib
  if ! [ -x /usr/bin/cargo ] || ! [ -e "$source" ] || ! command -v wasm-ld-19 >/dev/null; then
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends rustc-web cargo-web rust-web-src lld-19
  fi
  host=$(/usr/bin/rustc -vV | sed -n 's/^host: //p')
  build=$(mktemp -d)
  trap 'rm -rf "$build"' EXIT
  mkdir -p "$build/src" "$build/.cargo"
  : >"$build/src/lib.rs"
  printf '[package]\nname="std-builder"\nversion="0.0.0"\nedition="2021"\n[workspace]\n' >"$build/Cargo.toml"
  printf '[source.crates-io]\nreplace-with="v"\n[source.v]\ndirectory="%s"\n' "$source/vendor" >"$build/.cargo/config.toml"
  cd "$build"
  # Bitcode, because the crate is linked with lto.
  env -u CARGO_TARGET_DIR RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 RUSTFLAGS="-C embed-bitcode=yes" \
    /usr/bin/cargo build --release --target $target -Zbuild-std=core,alloc,std,panic_abort,proc_macro
  lib=$cache/lib/rustlib
  rm -rf "$cache"
  mkdir -p "$cache/bin" "$lib/$target/lib" "$lib/$host/bin"
  cp target/$target/release/deps/*.rlib "$lib/$target/lib/"
  rm -f "$lib/$target/lib/"libstd_builder-*
  ln -s "/usr/lib/rustlib/$host/lib" "$lib/$host/lib"
  ln -s /usr/lib/llvm-19/bin/lld "$lib/$host/bin/rust-lld"
  ln -s /usr/lib/rustlib/src "$lib/src"
  printf '#!/bin/sh\nexec /usr/bin/rustc --sysroot "%s" "$@"\n' "$cache" >"$cache/bin/rustc"
  printf '#!/bin/sh\nRUSTC="%s/bin/rustc" exec /usr/bin/cargo "$@"\n' "$cache" >"$cache/bin/cargo"
  chmod +x "$cache/bin/"*
)

if ! has_target; then
  command -v apt-get >/dev/null || { echo "no std for $target: run rustup target add $target" >&2; exit 1; }
  [ -x "$cache/bin/cargo" ] || build_std
  export PATH="$cache/bin:$PATH"
  has_target
fi

features=+simd128,+bulk-memory
# The kernels count registers, so the order of instructions is theirs; what is to be unrolled, inlined or done in vectors
# is written so, and the rest is small. Without loop strength reduction what is added to an address stays in the load, so
# that V8 sees which vectors are neighbours (docs/decisions/wide-vectors.md).
flags='-C llvm-args=-pre-RA-sched=source'
small="$flags -C llvm-args=-disable-lsr -C no-vectorize-loops -C llvm-args=-unroll-runtime=false -C llvm-args=-inline-threshold=100"
build() { # build CRATE NAME PROFILE FEATURES FLAGS
  local out=$1/target/$2
  # The names of this machine's folders do not belong into the modules.
  RUSTFLAGS="-C target-feature=$4 $5 --remap-path-prefix=$1=$(basename "$1")" CARGO_TARGET_DIR=$out \
    cargo build --manifest-path "$1/Cargo.toml" --locked --target $target --profile "$3" >&2
  local module=$out/$target/$3/palisade_$(basename "$1").wasm
  if [ -n "${WASM_OPT:-}" ] && [ "$3" = release ]; then
    "$WASM_OPT" -O3 --all-features "$module" -o "$out/optimised.wasm"
    module=$out/optimised.wasm
  fi
  echo "$module"
}
simd=$(build "$crate" simd release $features "$small")
relaxed=$(build "$crate" relaxed release $features,+relaxed-simd "$small")
checked=$(build "$crate" checked checked $features "$small")
ceilings=$root/bench/ceilings
install -m 644 "$(build "$ceilings" simd release $features "$flags")" "$root/bench/ceilings_simd128.wasm"
install -m 644 "$(build "$ceilings" relaxed release $features,+relaxed-simd "$flags")" "$root/bench/ceilings_relaxed.wasm"

mkdir -p "$root/tests/data"
install -m 644 "$checked" "$root/tests/data/kernels_checked.wasm"
{
  echo '// Made by tools/build_wasm.sh from wasm/kernels/; hashes in kernels.hash.'
  echo '// deno-fmt-ignore-file'
  echo '/** The kernels as WebAssembly with 128-bit vectors, base64. */'
  echo "export const SIMD128: string = \"$(base64 -w0 "$simd")\";"
  echo '/** The same with relaxed vector instructions (fused multiply-add), base64. */'
  echo "export const RELAXED: string = \"$(base64 -w0 "$relaxed")\";"
} >"$root/wasm/kernels_bytes.ts"
{
  echo "source $(source_hash)"
  for module in "simd128 $simd" "relaxed $relaxed" "checked $checked"; do
    echo "${module%% *} $(sha256sum <"${module#* }" | cut -d' ' -f1)"
  done
} >"$root/wasm/kernels.hash"
wc -c "$simd" "$relaxed" "$checked" >&2
