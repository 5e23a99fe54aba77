// Stores rows of float32 as the cache keeps them, bit for bit as core/backend/stored_rows.ts does.
//
//   f32:  the numbers.
//   f16:  each number rounded to float16, ties to even; two in a word, the first in the low half.
//   int8: one word with the float32 scale, then four whole numbers a word, the first in the low byte.
//         scale = largest / 127, rounded up to 17 bits of mantissa; each number / scale, ties to even.
//
// Shapes: source [rows, sourceHeads, D], target: words, head h's row t from params[5 + h] + t * stride on. Keys and values
// lie alike: group.z 0 stores the first of both, 1 the second.
// One workgroup stores one row of one head: group (h, t, z). Its 64 invocations take every 64th number, then word.
//
// `turned` takes few rows as a product gives them, queries, keys and values side by side, and turns them on the way as
// dense/rotate.wgsl does: keys (z 0) and values (z 1) are stored, queries (z 2) written to [rows, HEADS, D].
//
// A number that the type can't hold sets faults[0] to the owner's number; the row is then not used.
// Only integer arithmetic decides on a bit: a device's division and rounding need not be exact.

/** Numbers of a row. */
override D: u32 = 64u;
/** 0: f32, 1: f16, 2: int8. */
override KIND: u32 = 0u;

/** Of `turned`: query heads and KV heads, the columns of a head that turn, and whether pairs are neighbours. */
override HEADS: u32 = 1u;
override KV_HEADS: u32 = 1u;
override ROTATED: u32 = 0u;
override INTERLEAVED: bool = false;
/** Whether the numbers of a row are at hand, as `turned` has them. */
override TURNED: bool = false;

/** rows, sourceHeads, first source head, owner, first row, then the word where each head's row 0 would go (modulo 2^32). */
@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> source: array<f32>;
@group(0) @binding(2) var<storage, read_write> stored: array<u32>;
@group(0) @binding(3) var<storage, read_write> faults: array<atomic<u32>>;
@group(0) @binding(4) var<storage, read> second_source: array<f32>;
@group(0) @binding(5) var<storage, read_write> second_stored: array<u32>;
/** (rows, ROTATED + 1): cosines, sines; growth of the queries. */
@group(0) @binding(6) var<storage, read> table: array<f32>;
@group(0) @binding(7) var<storage, read_write> queries: array<f32>;

const SIZE = 64u;
/** Magnitudes from here on round to infinity in float16 (65520), or are none (infinity, NaN). */
const HALF_LIMIT = 0x477ff000u;
const FLOAT_LIMIT = 0x7f800000u;

/** The largest magnitude of the row, as the float's bits: for magnitudes they are in the order of the numbers. */
var<workgroup> largest: atomic<u32>;

fn half_of(bits: u32) -> u32 {
  let sign = (bits >> 16u) & 0x8000u;
  let magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x38800000u) {
    return sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13u) & 1u)) >> 13u);
  }
  // Below 2^-14: whole multiples of 2^-24.
  let exponent = magnitude >> 23u;
  if (exponent < 102u) { return sign; }
  let shift = 126u - exponent;
  let mantissa = (magnitude & 0x7fffffu) | 0x800000u;
  let rest = mantissa & ((1u << shift) - 1u);
  let half = 1u << (shift - 1u);
  let whole = mantissa >> shift;
  return sign | (whole + select(0u, 1u, rest > half || (rest == half && (whole & 1u) == 1u)));
}

/** The float next to bits / 127, rounded up to 17 bits of mantissa; 0 below 2^-119. */
fn scale_of(bits: u32) -> u32 {
  let exponent = bits >> 23u;
  if (exponent < 8u) { return 0u; }
  let shifted = ((bits & 0x7fffffu) | 0x800000u) << 7u;
  let quotient = shifted / 127u;
  let rest = shifted % 127u;
  var mantissa = quotient;
  var power = exponent - 7u;
  if (quotient < 0x1000000u) {
    mantissa += select(0u, 1u, 2u * rest > 127u);
  } else {
    mantissa = quotient >> 1u;
    mantissa += select(0u, 1u, (quotient & 1u) == 1u && (rest > 0u || (mantissa & 1u) == 1u));
    power += 1u;
  }
  return ((power << 23u) + (mantissa - 0x800000u) + 0x7fu) & ~0x7fu;
}

/** x / scale to the nearest whole number, ties to even: what is left of x after whole scales is exact. */
fn byte_of(x: f32, scale: f32) -> u32 {
  if (scale == 0.0) { return 0u; }
  let magnitude = abs(x);
  let whole = min(floor(magnitude / scale), 127.0);
  let rest = magnitude - whole * scale;
  let twice = 2.0 * rest;
  let odd = (u32(whole) & 1u) == 1u;
  let rounded = i32(whole) + select(0, 1, twice > scale || (twice == scale && odd));
  return bitcast<u32>(select(rounded, -rounded, x < 0.0)) & 0xffu;
}

/** Turned numbers that a workgroup stores at once: a row of it. */
const MOST = 256u;
var<workgroup> at_hand: array<f32, MOST>;

/** Column `d` of the head that begins at `head` of the source, turned by row t of the table. */
fn turn(head: u32, d: u32, t: u32) -> f32 {
  let own = source[head + d];
  if (d >= ROTATED) { return own; }
  let pairs = ROTATED / 2u;
  let pair = select(d % pairs, d / 2u, INTERLEAVED);
  let is_second = select(d >= pairs, d % 2u == 1u, INTERLEAVED);
  let distance = select(pairs, 1u, INTERLEAVED);
  let partner = source[head + select(d + distance, d - distance, is_second)];
  let at = t * (ROTATED + 1u) + pair;
  return own * table[at] + select(-partner, partner, is_second) * table[at + pairs];
}

/** Number `d` of the row that begins at `origin`. */
fn number(second: bool, origin: u32, d: u32) -> f32 {
  if (TURNED) { return at_hand[d]; }
  if (second) { return second_source[origin + d]; }
  return source[origin + d];
}

fn bits_of(second: bool, origin: u32, d: u32) -> u32 {
  return bitcast<u32>(number(second, origin, d));
}

fn put(second: bool, at: u32, word: u32) {
  if (second) {
    second_stored[at] = word;
  } else {
    stored[at] = word;
  }
}

/** Stores row `row` of head `head`, whose numbers begin at `origin` of the source. */
fn store(row: u32, head: u32, origin: u32, second: bool, local: u32) {
  if (KIND == 0u) {
    let to = params[5u + head] + row * D;
    for (var d = local; d < D; d += SIZE) { put(second, to + d, bits_of(second, origin, d)); }
    return;
  }
  var most = 0u;
  for (var d = local; d < D; d += SIZE) { most = max(most, bits_of(second, origin, d) & 0x7fffffffu); }
  atomicMax(&largest, most);
  if (most >= select(FLOAT_LIMIT, HALF_LIMIT, KIND == 1u)) { atomicMax(&faults[0], params[3]); }
  workgroupBarrier();
  if (KIND == 1u) {
    let words = (D + 1u) / 2u;
    let to = params[5u + head] + row * words;
    for (var w = local; w < words; w += SIZE) {
      var word = half_of(bits_of(second, origin, 2u * w));
      if (2u * w + 1u < D) { word |= half_of(bits_of(second, origin, 2u * w + 1u)) << 16u; }
      put(second, to + w, word);
    }
    return;
  }
  let words = (D + 3u) / 4u;
  let to = params[5u + head] + row * (words + 1u);
  let bits = scale_of(atomicLoad(&largest));
  if (local == 0u) { put(second, to, bits); }
  for (var w = local; w < words; w += SIZE) {
    var word = 0u;
    for (var i = 0u; i < 4u; i++) {
      let d = 4u * w + i;
      if (d < D) { word |= byte_of(number(second, origin, d), bitcast<f32>(bits)) << (8u * i); }
    }
    put(second, to + 1u + w, word);
  }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let row = params[4] + group.y;
  if (row >= params[0]) { return; }
  store(row, group.x, (row * params[1] + params[2] + group.x) * D, group.z == 1u, local);
}

@compute @workgroup_size(64)
fn turned(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let row = group.y;
  let first = row * (HEADS + 2u * KV_HEADS) * D;
  if (row >= params[0] || group.x >= select(KV_HEADS, HEADS, group.z == 2u)) { return; }
  if (group.z == 2u) {
    let growth = table[row * (ROTATED + 1u) + ROTATED];
    let to = (row * HEADS + group.x) * D;
    for (var d = local; d < D; d += SIZE) { queries[to + d] = turn(first + group.x * D, d, row) * growth; }
    return;
  }
  let origin = first + (HEADS + group.z * KV_HEADS + group.x) * D;
  for (var d = local; d < D; d += SIZE) {
    if (group.z == 0u) {
      at_hand[d] = turn(origin, d, row);
    } else {
      at_hand[d] = source[origin + d];
    }
  }
  workgroupBarrier();
  store(row, group.x, origin, group.z == 1u, local);
}
