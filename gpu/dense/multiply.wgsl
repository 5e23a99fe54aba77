// Products of a matrix, its weights as they stand in the model's file, with rows of float32; and rows of it.
//
//   one_row, many_rows   out[t, column + n] = Σ_k W[n, k] · x[t, k]  (+ bias[n])  (+ addend[t, column + n])
//   embed                out[t, k] = SCALE · W[ids[t] − first, k]
//
//   params   count, column, stride, first                         weights  W, (OUTPUTS, INPUTS), a row in ROW_BYTES
//   x        (count, INPUTS)                                       bias     (OUTPUTS), where HAS_BIAS
//   ids      (count)                                               addend   (count, stride), where HAS_ADDEND
//   out      (count, stride)
//
// INPUTS counts the zeros behind a row of floats; embed leaves them out.
//
// A row is taken eight weights at a time, a "unit": two quads, whose places in the row follow from how the type packs its
// bits (`places`). A sum over a row does not care about the order of its units, so the tiles of many_rows hold them as
// they come.
//
// Before a device compiles it, the cases of other types are left out (`gpu/dense/shaders.ts`).

// f16: enable f16;
// subgroups: enable subgroups;

// Number of the tensor type in the file.
override KIND: u32 = 0u;
// A multiple of 8.
override INPUTS: u32 = 8u;
override OUTPUTS: u32 = 1u;
override ROW_BYTES: u32 = 32u;
override HAS_BIAS: bool = false;
override HAS_ADDEND: bool = false;
// Factor on the embeddings.
override SCALE: f32 = 1.0;

@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> weights: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;
@group(0) @binding(3) var<storage, read> x: array<vec4f>;
// f16: @group(0) @binding(3) var<storage, read> narrow: array<vec4h>;
@group(0) @binding(3) var<storage, read> ids: array<u32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read> addend: array<f32>;
// f16: @group(0) @binding(6) var<storage, read> scales: array<f32>;

// Eight weights: those at the two places of a unit and the three after each.
struct Unit {
  a: vec4f,
  b: vec4f,
}

// Where the quads of unit `u` begin in the row.
fn places(u: u32) -> vec2u {
  switch KIND {
    // Low and high halves of the bytes of a block of 32.
    case 2u, 3u, 6u, 7u, 20u, 39u, 23u: {
      let a = (u >> 2u) * 32u + (u & 3u) * 4u;
      return vec2u(a, a + 16u);
    }
    // Of 64.
    case 12u, 13u: {
      let a = (u >> 3u) * 64u + (u & 7u) * 4u;
      return vec2u(a, a + 32u);
    }
    // Quarters of 128: the two of a byte of lower bits; the first two or the last two.
    case 14u: {
      let a = (u >> 4u) * 128u + (u & 15u) * 4u;
      return vec2u(a, a + 64u);
    }
    case 10u, 11u: {
      let a = (u >> 4u) * 128u + ((u >> 3u) & 1u) * 64u + (u & 7u) * 4u;
      return vec2u(a, a + 32u);
    }
    default: {
      return vec2u(8u * u, 8u * u + 4u);
    }
  }
}

// The four bytes from byte `at` on, which need not be a multiple of four.
fn word(at: u32) -> u32 {
  let first = weights[at >> 2u];
  let shift = (at & 3u) * 8u;
  if (shift == 0u) {
    return first;
  }
  return (first >> shift) | (weights[(at >> 2u) + 1u] << (32u - shift));
}

fn byte(at: u32) -> u32 {
  return (weights[at >> 2u] >> ((at & 3u) * 8u)) & 255u;
}

fn signed_byte(at: u32) -> f32 {
  return f32(i32(byte(at) << 24u) >> 24u);
}

fn half(at: u32) -> f32 {
  return unpack2x16float(word(at)).x;
}

// Bits `mask` of each byte.
fn bytes(four: u32, mask: u32) -> vec4u {
  return (vec4u(four) >> vec4u(0u, 8u, 16u, 24u)) & vec4u(mask);
}

// Bits first … first + 3 of a mask.
fn bits(mask: u32, first: u32) -> vec4f {
  return vec4f((vec4u(mask) >> (vec4u(first) + vec4u(0u, 1u, 2u, 3u))) & vec4u(1u));
}

fn signed(four: u32) -> vec4f {
  return vec4f(vec4i(vec4u(four) << vec4u(24u, 16u, 8u, 0u)) >> vec4u(24u));
}

// Two float16 in each word.
fn halves(low: u32, high: u32) -> vec4f {
  return vec4f(unpack2x16float(low), unpack2x16float(high));
}

fn bfloats(low: u32, high: u32) -> vec4f {
  return bitcast<vec4f>(vec4u(low << 16u, low & 0xffff0000u, high << 16u, high & 0xffff0000u));
}

// Entry `q` of a table of 16 signed bytes.
fn entry(table: vec4u, q: u32) -> f32 {
  let four = select(select(table.x, table.y, (q & 4u) != 0u), select(table.z, table.w, (q & 4u) != 0u), q >= 8u);
  return f32(i32(four << (24u - (q & 3u) * 8u)) >> 24u);
}

fn entries(table: vec4u, q: vec4u) -> vec4f {
  return vec4f(entry(table, q.x), entry(table, q.y), entry(table, q.z), entry(table, q.w));
}

// IQ4_NL and IQ4_XS: −127, −104, −83, −65; −49, −35, −22, −10; 1, 13, 25, 38; 53, 69, 89, 113.
const IQ4 = vec4u(0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u);
// Twice the 4-bit floats of MXFP4: 0, 1, 2, 3; 4, 6, 8, 12; the same negative.
const FP4 = vec4u(0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu);

// Q4_K and Q5_K: six bits each of scale and minimum of a group, in 12 bytes.
fn scale_and_minimum(at: u32, group: u32) -> vec2f {
  if (group < 4u) {
    return vec2f(vec2u(byte(at + group), byte(at + 4u + group)) & vec2u(63u));
  }
  let low = byte(at + 4u + group);
  let scale = (low & 15u) | ((byte(at + group - 4u) >> 2u) & 48u);
  let minimum = (low >> 4u) | ((byte(at + group) >> 2u) & 48u);
  return vec2f(vec2u(scale, minimum));
}

// Q3_K: six bits of a group's scale, in 12 bytes.
fn small_scale(at: u32, group: u32) -> f32 {
  let low = (byte(at + (group & 7u)) >> ((group >> 3u) * 4u)) & 15u;
  let high = (byte(at + 8u + (group & 3u)) >> ((group >> 2u) * 2u)) & 3u;
  return f32(low | (high << 4u)) - 32.0;
}

// Unit `u` of the row that begins at byte `row`. The layouts are those of `model/file/gguf/dequantise.ts`.
fn unit(row: u32, u: u32) -> Unit {
  switch KIND {
    // F16, BF16
    case 1u, 30u: {
      let at = row + u * 16u;
      let four = vec4u(word(at), word(at + 4u), word(at + 8u), word(at + 12u));
      if (KIND == 1u) {
        return Unit(halves(four.x, four.y), halves(four.z, four.w));
      }
      return Unit(bfloats(four.x, four.y), bfloats(four.z, four.w));
    }
    // Q4_0, Q4_1
    case 2u: {
      let at = row + (u >> 2u) * 18u;
      let d = half(at);
      let q = word(at + 2u + (u & 3u) * 4u);
      return Unit(d * (vec4f(bytes(q, 15u)) - 8.0), d * (vec4f(bytes(q >> 4u, 15u)) - 8.0));
    }
    case 3u: {
      let at = row + (u >> 2u) * 20u;
      let dm = unpack2x16float(word(at));
      let q = word(at + 4u + (u & 3u) * 4u);
      return Unit(dm.x * vec4f(bytes(q, 15u)) + dm.y, dm.x * vec4f(bytes(q >> 4u, 15u)) + dm.y);
    }
    // Q5_0, Q5_1
    case 6u: {
      let at = row + (u >> 2u) * 22u;
      let d = half(at);
      let fifth = word(at + 2u);
      let t = (u & 3u) * 4u;
      let q = word(at + 6u + t);
      let a = vec4f(bytes(q, 15u)) + 16.0 * bits(fifth, t);
      let b = vec4f(bytes(q >> 4u, 15u)) + 16.0 * bits(fifth, t + 16u);
      return Unit(d * (a - 16.0), d * (b - 16.0));
    }
    case 7u: {
      let at = row + (u >> 2u) * 24u;
      let dm = unpack2x16float(word(at));
      let fifth = word(at + 4u);
      let t = (u & 3u) * 4u;
      let q = word(at + 8u + t);
      let a = vec4f(bytes(q, 15u)) + 16.0 * bits(fifth, t);
      let b = vec4f(bytes(q >> 4u, 15u)) + 16.0 * bits(fifth, t + 16u);
      return Unit(dm.x * a + dm.y, dm.x * b + dm.y);
    }
    // Q8_0
    case 8u: {
      let at = row + (u >> 2u) * 34u;
      let d = half(at);
      let q = at + 2u + (u & 3u) * 8u;
      return Unit(d * signed(word(q)), d * signed(word(q + 4u)));
    }
    // Q2_K, Q3_K: r is the unit's place in its 256
    case 10u: {
      let at = row + (u >> 5u) * 84u;
      let r = u & 31u;
      let shift = ((r >> 3u) & 1u) * 4u;
      let q = word(at + 16u + (r >> 4u) * 32u + (r & 7u) * 4u) >> shift;
      let group = (places(u).x >> 4u) & 15u;
      let first = byte(at + group);
      let second = byte(at + group + 2u);
      let dm = unpack2x16float(word(at + 80u));
      let a = dm.x * f32(first & 15u) * vec4f(bytes(q, 3u)) - dm.y * f32(first >> 4u);
      let b = dm.x * f32(second & 15u) * vec4f(bytes(q >> 2u, 3u)) - dm.y * f32(second >> 4u);
      return Unit(a, b);
    }
    case 11u: {
      let at = row + (u >> 5u) * 110u;
      let r = u & 31u;
      let t = (r & 7u) * 4u;
      let q = word(at + 32u + (r >> 4u) * 32u + t) >> (((r >> 3u) & 1u) * 4u);
      let third = word(at + t) >> ((r >> 3u) * 2u);
      let group = (places(u).x >> 4u) & 15u;
      let d = half(at + 108u);
      let a = vec4f(bytes(q, 3u)) + 4.0 * vec4f(bytes(third, 1u)) - 4.0;
      let b = vec4f(bytes(q >> 2u, 3u)) + 4.0 * vec4f(bytes(third >> 1u, 1u)) - 4.0;
      return Unit(d * small_scale(at + 96u, group) * a, d * small_scale(at + 96u, group + 2u) * b);
    }
    // Q4_K, Q5_K
    case 12u: {
      let at = row + (u >> 5u) * 144u;
      let r = u & 31u;
      let group = (r >> 3u) * 2u;
      let q = word(at + 16u + (r >> 3u) * 32u + (r & 7u) * 4u);
      let dm = unpack2x16float(word(at));
      let first = dm * scale_and_minimum(at + 4u, group);
      let second = dm * scale_and_minimum(at + 4u, group + 1u);
      return Unit(first.x * vec4f(bytes(q, 15u)) - first.y, second.x * vec4f(bytes(q >> 4u, 15u)) - second.y);
    }
    case 13u: {
      let at = row + (u >> 5u) * 176u;
      let r = u & 31u;
      let group = (r >> 3u) * 2u;
      let q = word(at + 48u + (r >> 3u) * 32u + (r & 7u) * 4u);
      let fifth = word(at + 16u + (r & 7u) * 4u) >> group;
      let dm = unpack2x16float(word(at));
      let first = dm * scale_and_minimum(at + 4u, group);
      let second = dm * scale_and_minimum(at + 4u, group + 1u);
      let a = vec4f(bytes(q, 15u) | (bytes(fifth, 1u) << vec4u(4u)));
      let b = vec4f(bytes(q >> 4u, 15u) | (bytes(fifth >> 1u, 1u) << vec4u(4u)));
      return Unit(first.x * a - first.y, second.x * b - second.y);
    }
    // Q6_K
    case 14u: {
      let at = row + (u >> 5u) * 210u;
      let r = u & 31u;
      let side = r >> 4u;
      let t = r & 15u;
      let q = word(at + side * 64u + t * 4u);
      let upper = word(at + 128u + side * 32u + (t & 7u) * 4u) >> ((t >> 3u) * 2u);
      let a = vec4f(bytes(q, 15u) | (bytes(upper, 3u) << vec4u(4u))) - 32.0;
      let b = vec4f(bytes(q >> 4u, 15u) | (bytes(upper >> 4u, 3u) << vec4u(4u))) - 32.0;
      let d = half(at + 208u);
      let group = at + 192u + side * 8u + (t >> 2u);
      return Unit(d * signed_byte(group) * a, d * signed_byte(group + 4u) * b);
    }
    // IQ4_NL, IQ4_XS
    case 20u: {
      let at = row + (u >> 2u) * 18u;
      let d = half(at);
      let q = word(at + 2u + (u & 3u) * 4u);
      return Unit(d * entries(IQ4, bytes(q, 15u)), d * entries(IQ4, bytes(q >> 4u, 15u)));
    }
    case 23u: {
      let at = row + (u >> 5u) * 136u;
      let group = (u & 31u) >> 2u;
      let first = word(at);
      let low = (byte(at + 4u + (group >> 1u)) >> ((group & 1u) * 4u)) & 15u;
      let high = (first >> (16u + 2u * group)) & 3u;
      let d = unpack2x16float(first).x * (f32(low | (high << 4u)) - 32.0);
      let q = word(at + 8u + group * 16u + (u & 3u) * 4u);
      return Unit(d * entries(IQ4, bytes(q, 15u)), d * entries(IQ4, bytes(q >> 4u, 15u)));
    }
    // MXFP4
    case 39u: {
      let at = row + (u >> 2u) * 17u;
      let d = bitcast<f32>((max(byte(at), 1u) - 1u) << 23u);
      let q = word(at + 1u + (u & 3u) * 4u);
      return Unit(d * entries(FP4, bytes(q, 15u)), d * entries(FP4, bytes(q >> 4u, 15u)));
    }
    // F32
    default: {
      let at = (row >> 2u) + u * 8u;
      let a = vec4u(weights[at], weights[at + 1u], weights[at + 2u], weights[at + 3u]);
      let b = vec4u(weights[at + 4u], weights[at + 5u], weights[at + 6u], weights[at + 7u]);
      return Unit(bitcast<vec4f>(a), bitcast<vec4f>(b));
    }
  }
}

fn write(t: u32, n: u32, product: f32) {
  let at = t * params[2] + params[1] + n;
  var sum = product;
  if (HAS_BIAS) {
    sum += bias[n];
  }
  if (HAS_ADDEND) {
    sum += addend[at];
  }
  out[at] = sum;
}

// One row of x: a workgroup gives four neighbouring results, every thread of it some units of all four.

const LANES = 64u;
const FOUR = 4u;

var<workgroup> parts: array<vec4f, LANES>;

// The sum of all threads' `part`, for thread 0.
fn sum_of(part: vec4f, lane: u32) -> vec4f {
  parts[lane] = part;
  for (var step = LANES / 2u; step > 0u; step /= 2u) {
    workgroupBarrier();
    if (lane < step) {
      parts[lane] += parts[lane + step];
    }
  }
  return parts[0];
}

// The same by subgroups, whose threads are neighbours in all implementations that are known.
// subgroups: fn sum_of_subgroups(part: vec4f, lane: u32, within: u32, size: u32) -> vec4f {
// subgroups:   let sum = subgroupAdd(part);
// subgroups:   if (within == 0u) {
// subgroups:     parts[lane / size] = sum;
// subgroups:   }
// subgroups:   workgroupBarrier();
// subgroups:   var all = parts[0];
// subgroups:   for (var i = 1u; i < (LANES + size - 1u) / size; i++) {
// subgroups:     all += parts[i];
// subgroups:   }
// subgroups:   return all;
// subgroups: }

@compute @workgroup_size(LANES)
fn one_row(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) lane: u32,
// subgroups:  @builtin(subgroup_invocation_id) within: u32,
// subgroups:  @builtin(subgroup_size) size: u32,
) {
  let first = (group.x + group.y * groups.x) * FOUR;
  let t = group.z;
  if (first >= OUTPUTS || t >= params[0]) {
    return;
  }
  // Beyond the last row the last row is taken again, and not written.
  let last = OUTPUTS - 1u;
  let rows = min(vec4u(first) + vec4u(0u, 1u, 2u, 3u), vec4u(last)) * ROW_BYTES;
  let inputs = t * (INPUTS / 4u);
  var part = vec4f(0.0);
  for (var u = lane; u < INPUTS / 8u; u += LANES) {
    let place = places(u) / 4u + inputs;
    let a = x[place.x];
    let b = x[place.y];
    let w0 = unit(rows.x, u);
    let w1 = unit(rows.y, u);
    let w2 = unit(rows.z, u);
    let w3 = unit(rows.w, u);
    part += vec4f(dot(w0.a, a), dot(w1.a, a), dot(w2.a, a), dot(w3.a, a));
    part += vec4f(dot(w0.b, b), dot(w1.b, b), dot(w2.b, b), dot(w3.b, b));
  }
  let sum = sum_of(part, lane); // subgroups: let sum = sum_of_subgroups(part, lane, within, size);
  if (lane == 0u) {
    for (var i = 0u; i < min(FOUR, OUTPUTS - first); i++) {
      write(t, first + i, sum[i]);
    }
  }
}

// Many rows of x: a workgroup gives a tile of 16 · EACH_T by 16 · EACH_N results, every thread of it EACH_T by EACH_N of
// them, 16 apart. The sum goes in steps of 4 units, 32 numbers, whose weights and inputs stand in workgroup memory: 16 KiB
// for 4 by 4, with float16 8. There x is narrowed to float16, each row of it divided by its entry of `scales`.

override EACH_N: u32 = 4u;
override EACH_T: u32 = 4u;

const SIDE = 16u;
const QUADS = 8u;

alias Quad = vec4f; // f16: alias Quad = vec4h;

// (QUADS, SIDE · EACH)
var<workgroup> tile_x: array<Quad, QUADS * SIDE * EACH_T>;
var<workgroup> tile_w: array<Quad, QUADS * SIDE * EACH_N>;

@compute @workgroup_size(256)
fn many_rows(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let tile_n = SIDE * EACH_N;
  let tile_t = SIDE * EACH_T;
  let first_n = group.x * tile_n;
  let first_t = group.y * tile_t;
  let count = params[0];
  let my_n = lane % SIDE;
  let my_t = lane / SIDE;
  // What this thread brings into workgroup memory: unit `brings` of the four of row `row` of the tile.
  let row = lane / 4u;
  let brings = lane % 4u;
  let weights_at = min(first_n + row, OUTPUTS - 1u) * ROW_BYTES;
  let inputs_at = min(first_t + row, count - 1u) * (INPUTS / 4u);
  var sums: array<vec4f, 4>;
  for (var first_u = 0u; first_u < INPUTS / 8u; first_u += 4u) {
    let u = first_u + brings;
    let is_there = u < INPUTS / 8u;
    if (row < tile_n) {
      var w = Unit(vec4f(0.0), vec4f(0.0));
      if (is_there) {
        w = unit(weights_at, u);
      }
      tile_w[2u * brings * tile_n + row] = Quad(w.a);
      tile_w[(2u * brings + 1u) * tile_n + row] = Quad(w.b);
    }
    if (row < tile_t) {
      var a = Quad();
      var b = Quad();
      if (is_there) {
        let place = places(u) / 4u + inputs_at;
        a = x[place.x]; // f16: a = narrow[place.x];
        b = x[place.y]; // f16: b = narrow[place.y];
      }
      tile_x[2u * brings * tile_t + row] = a;
      tile_x[(2u * brings + 1u) * tile_t + row] = b;
    }
    workgroupBarrier();
    for (var k = 0u; k < QUADS; k++) {
      var w: array<Quad, 4>;
      for (var j = 0u; j < EACH_N; j++) {
        w[j] = tile_w[k * tile_n + my_n + j * SIDE];
      }
      for (var i = 0u; i < EACH_T; i++) {
        let inputs = tile_x[k * tile_t + my_t + i * SIDE];
        for (var j = 0u; j < EACH_N; j++) {
          sums[i][j] += f32(dot(w[j], inputs));
        }
      }
    }
    workgroupBarrier();
  }
  for (var i = 0u; i < EACH_T; i++) {
    let t = first_t + my_t + i * SIDE;
    for (var j = 0u; j < EACH_N; j++) {
      let n = first_n + my_n + j * SIDE;
      if (t < count && n < OUTPUTS) {
        write(t, n, sums[i][j]); // f16: write(t, n, sums[i][j] * scales[t]);
      }
    }
  }
}

// One thread: a unit of one token's row.
@compute @workgroup_size(64)
fn embed(@builtin(global_invocation_id) id: vec3u) {
  let u = id.x;
  let t = id.y;
  if (u >= INPUTS / 8u || t >= params[0]) {
    return;
  }
  let first = params[3];
  let row = ids[t] - first;
  if (ids[t] < first || row >= OUTPUTS) {
    return;
  }
  let found = unit(row * ROW_BYTES, u);
  let place = places(u);
  let width = params[2];
  for (var i = 0u; i < 4u; i++) {
    if (place.x + i < width) {
      out[t * width + place.x + i] = SCALE * found.a[i];
    }
    if (place.y + i < width) {
      out[t * width + place.y + i] = SCALE * found.b[i];
    }
  }
}
