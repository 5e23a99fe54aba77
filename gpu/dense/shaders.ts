/** Made from the .wgsl files beside it by `deno run -A tools/build_shaders.ts`: don't edit. */
import type { ShaderFile } from "../stage.ts";

export const ADD: ShaderFile = {
  name: "dense/add.wgsl",
  text: `// out = a + b, (count, WIDTH) each.
//
//   params  count
//
// A thread gives one number.

override WIDTH: u32 = 1u;

@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let i = id.x;
  let t = id.y;
  if (i >= WIDTH || t >= params[0]) {
    return;
  }
  let at = t * WIDTH + i;
  out[at] = a[at] + b[at];
}
`,
};

export const CAP: ShaderFile = {
  name: "dense/cap.wgsl",
  text: `// out = CAP · tanh(x / CAP), (count, WIDTH) each.
//
//   params  count
//
// A thread gives one number.

override WIDTH: u32 = 1u;
override CAP: f32 = 1.0;

@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let i = id.x;
  let t = id.y;
  if (i >= WIDTH || t >= params[0]) {
    return;
  }
  let at = t * WIDTH + i;
  // Beyond 15 tanh is 1 in float32, and some devices' overflows.
  out[at] = CAP * tanh(clamp(x[at] / CAP, -15.0, 15.0));
}
`,
};

export const CHOOSE: ShaderFile = {
  name: "dense/choose.wgsl",
  text: `// The greedy choice: the lowest token of the largest logit, and that logit.
//
// A logit that is no number or +∞ counts as the largest of all, so that whoever reads the choice sees it.
//
//   parts   found[g] = the best of logits[g · SPAN … (g + 1) · SPAN)      params  length of logits
//   whole   choice   = the best of found                                  params  length of found
//
//   logits  (VOCABULARY), as bits      found  (groups) of token, bits      choice  token, bits
//
// A workgroup takes SPAN logits, or all that was found.

override SPAN: u32 = 4096u;

const LANES = 64u;

// \`rank\` orders as the logits do.
struct Best {
  rank: u32,
  token: u32,
  bits: u32,
}

@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> logits: array<u32>;
@group(0) @binding(2) var<storage, read_write> found: array<vec2u>;
@group(0) @binding(1) var<storage, read> partial: array<vec2u>;
@group(0) @binding(2) var<storage, read_write> choice: array<u32>;

var<workgroup> bests: array<Best, LANES>;

fn rank_of(bits: u32) -> u32 {
  // From +∞ on: those and what is no number.
  if ((bits & 0x7fffffffu) > 0x7f800000u || bits == 0x7f800000u) {
    return 0xffffffffu;
  }
  // −0 is 0; smaller is larger where the sign is set.
  return select(bits | 0x80000000u, ~bits, bits > 0x80000000u);
}

fn better(a: Best, b: Best) -> Best {
  if (b.rank > a.rank || (b.rank == a.rank && b.token < a.token)) {
    return b;
  }
  return a;
}

// The best of all threads', in place 0.
fn gather(best: Best, lane: u32) {
  bests[lane] = best;
  for (var step = LANES / 2u; step > 0u; step /= 2u) {
    workgroupBarrier();
    if (lane < step) {
      bests[lane] = better(bests[lane], bests[lane + step]);
    }
  }
}

@compute @workgroup_size(LANES)
fn parts(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let end = min(params[0], (group.x + 1u) * SPAN);
  var best = Best(0u, 0xffffffffu, 0xff800000u);
  for (var i = group.x * SPAN + lane; i < end; i += LANES) {
    best = better(best, Best(rank_of(logits[i]), i, logits[i]));
  }
  gather(best, lane);
  if (lane == 0u) {
    found[group.x] = vec2u(bests[0].token, bests[0].bits);
  }
}

@compute @workgroup_size(LANES)
fn whole(@builtin(local_invocation_index) lane: u32) {
  var best = Best(0u, 0xffffffffu, 0xff800000u);
  for (var i = lane; i < params[0]; i += LANES) {
    let one = partial[i];
    best = better(best, Best(rank_of(one.y), one.x, one.y));
  }
  gather(best, lane);
  if (lane == 0u) {
    choice[0] = bests[0].token;
    choice[1] = bests[0].bits;
  }
}
`,
};

export const COUPLE: ShaderFile = {
  name: "dense/couple.wgsl",
  text: `// Columns from FIRST on, SPAN of them, each times the one SPAN behind it; those behind go, and end the row:
//   out[t, i] = x[t, i] for i < FIRST, else x[t, i] · x[t, i + SPAN]
//
//   params  count      x  (count, FIRST + 2 · SPAN)      out  (count, FIRST + SPAN)
//
// A thread gives one number.

override FIRST: u32 = 0u;
override SPAN: u32 = 1u;

@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let i = id.x;
  let t = id.y;
  if (i >= FIRST + SPAN || t >= params[0]) {
    return;
  }
  let at = t * (FIRST + 2u * SPAN) + i;
  var number = x[at];
  if (i >= FIRST) {
    number *= x[at + SPAN];
  }
  out[t * (FIRST + SPAN) + i] = number;
}
`,
};

export const EXPERTS: ShaderFile = {
  name: "dense/experts.wgsl",
  text: `// The experts that each token goes to: those of its \`used\` largest numbers, the lower one among equals.
// Their shares are the softmax of their numbers.
//
//   params   count, experts, used          numbers  (count, experts)          out  (count, 2 · used): experts, shares
//
// A workgroup takes a token. It finds one expert after another: the best of those that come behind the one before.

const LANES = 64u;
const NONE = 0xffffffffu;

@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> numbers: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

var<workgroup> best: array<u32, LANES>;

// Whether expert \`a\` comes before \`b\`, which may be none.
fn is_before(a: u32, b: u32, row: u32) -> bool {
  if (b == NONE) {
    return a != NONE;
  }
  if (a == NONE) {
    return false;
  }
  let x = numbers[row + a];
  let y = numbers[row + b];
  return x > y || (x == y && a < b);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let t = group.x;
  if (t >= params[0]) {
    return;
  }
  let experts = params[1];
  let used = params[2];
  let row = t * experts;
  let to = t * 2u * used;
  var last = NONE;
  var largest = 0.0;
  var total = 0.0;
  for (var slot = 0u; slot < used; slot++) {
    var own = NONE;
    for (var i = lane; i < experts; i += LANES) {
      if ((last == NONE || is_before(last, i, row)) && is_before(i, own, row)) {
        own = i;
      }
    }
    best[lane] = own;
    for (var step = LANES / 2u; step > 0u; step /= 2u) {
      workgroupBarrier();
      if (lane < step && is_before(best[lane + step], best[lane], row)) {
        best[lane] = best[lane + step];
      }
    }
    workgroupBarrier();
    // Numbers that are none have no order: then it is the last.
    last = min(best[0], experts - 1u);
    workgroupBarrier();
    let number = numbers[row + last];
    if (slot == 0u) {
      largest = number;
    }
    let weight = exp(number - largest);
    total += weight;
    if (lane == 0u) {
      out[to + slot] = f32(last);
      out[to + used + slot] = weight;
    }
  }
  if (lane == 0u) {
    for (var slot = 0u; slot < used; slot++) {
      out[to + used + slot] /= total;
    }
  }
}
`,
};

export const GATE: ShaderFile = {
  name: "dense/gate.wgsl",
  text: `// out[t, i] = activation(x[t, i]) · x[t, WIDTH + i]: silu(a) = a / (1 + e^−a), or gelu in its tanh form;
// or gpt-oss's limited gate, a / (1 + e^−1.702a) · (b + 1) of a up to 7 and b from −7 to 7.
//
//   params  count      x  (count, 2 · WIDTH)      out  (count, WIDTH)
//
// \`by\`: out[t, i] = activation(x[t, i]) · factors[t, i] of two values, both (count, WIDTH).
//
// A thread gives one number.

override WIDTH: u32 = 1u;
// 0: silu, 1: gelu, 2: limited.
override ACTIVATION: u32 = 0u;

@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;
@group(0) @binding(3) var<storage, read> factors: array<f32>;

fn activation(a: f32) -> f32 {
  if (ACTIVATION == 1u) {
    // Beyond 15 tanh is 1 in float32, and some devices' overflows.
    return 0.5 * a * (1.0 + tanh(clamp(0.7978845608 * (a + 0.044715 * a * a * a), -15.0, 15.0)));
  }
  return a / (1.0 + exp(min(-a, 80.0)));
}

fn gated(a: f32, b: f32) -> f32 {
  if (ACTIVATION == 2u) {
    let most = min(a, 7.0);
    return most / (1.0 + exp(min(-1.702 * most, 80.0))) * (clamp(b, -7.0, 7.0) + 1.0);
  }
  return activation(a) * b;
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let i = id.x;
  let t = id.y;
  if (i >= WIDTH || t >= params[0]) {
    return;
  }
  let at = t * 2u * WIDTH + i;
  out[t * WIDTH + i] = gated(x[at], x[at + WIDTH]);
}

@compute @workgroup_size(64)
fn by(@builtin(global_invocation_id) id: vec3u) {
  let i = id.x;
  let t = id.y;
  if (i >= WIDTH || t >= params[0]) {
    return;
  }
  let at = t * WIDTH + i;
  out[at] = gated(x[at], factors[at]);
}
`,
};

export const MULTIPLY: ShaderFile = {
  name: "dense/multiply.wgsl",
  text: `// Products of a matrix, its weights as they stand in the model's file, with rows of float32; and rows of it.
//
//   one_row, small_rows, many_rows, wide_rows
//                        out[t, column + n] = Σ_k W[n, k] · x[t, k]  (+ bias[n])  (+ addend[t, column + n])
//   expand_rows, collect_rows   the same with the experts of each token, see there
//   embed                out[t, k] = SCALE · W[ids[t] − first, k]
//
//   params   count, column, stride, first                         weights  W, (OUTPUTS, INPUTS), a row in ROW_BYTES
//   gains    (INPUTS), where FIRST is 1
//   x        (count, INPUTS)                                       bias     (OUTPUTS), where HAS_BIAS
//   ids      (count)                                               addend   (count, stride), where HAS_ADDEND
//   out      (count, stride)
//
// INPUTS counts the zeros behind a row of floats; embed leaves them out.
//
// A row is taken eight weights at a time, a "unit": two quads, whose places in the row follow from how the type packs its
// bits (\`places\`). A sum over a row does not care about the order of its units, so tiles hold them as
// they come.
//
// Before a device compiles it, the cases of other types are left out (\`gpu/dense/shaders.ts\`).

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
// What one_row makes of its inputs first: 1, their RMS norm times gains (norm.wgsl); 2, 3, their gate (gate.wgsl, silu, gelu),
// where a row of x has 2 · INPUTS.
override FIRST: u32 = 0u;
override EPSILON: f32 = 1e-5;
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
@group(0) @binding(7) var<storage, read> gains: array<vec4f>;
// f16: @group(0) @binding(6) var<storage, read> scales: array<f32>;

// Eight weights: those at the two places of a unit and the three after each.
struct Unit {
  a: vec4f,
  b: vec4f,
}

// Where the quads of unit \`u\` begin in the row.
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

// The four bytes from byte \`at\` on, which need not be a multiple of four.
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

// Bits \`mask\` of each byte.
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

// Entry \`q\` of a table of 16 signed bytes.
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

// Unit \`u\` of the row that begins at byte \`row\`. The layouts are those of \`model/file/gguf/dequantise.ts\`.
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

// Numbers of a float's mantissa where the last bit counts 1: what is put into its low bits is a whole number, which needs
// no conversion.
const WHOLE = 8388608.0;
const WHOLE_BITS = 0x4b000000u;

// Bits \`mask\` of each byte, as numbers.
fn wholes(four: u32, mask: u32) -> vec4f {
  return bitcast<vec4f>(bytes(four, mask) | vec4u(WHOLE_BITS)) - WHOLE;
}

// Whole numbers with a sign, as numbers.
fn signed_wholes(four: u32) -> vec4f {
  return bitcast<vec4f>(bytes(four ^ 0x80808080u, 255u) | vec4u(WHOLE_BITS)) - (WHOLE + 128.0);
}

// The sixteen bytes from byte \`at\` on, a multiple of four; of two.
fn words(at: u32) -> vec4u {
  let i = at >> 2u;
  return vec4u(weights[i], weights[i + 1u], weights[i + 2u], weights[i + 3u]);
}

fn words_of_pairs(at: u32) -> vec4u {
  let first = words(at);
  if ((at & 2u) == 0u) {
    return first;
  }
  return (first >> vec4u(16u)) | (vec4u(first.yzw, weights[(at >> 2u) + 4u]) << vec4u(16u));
}

// Squares of the inputs that this thread has seen, where they are to be normed.
var<private> squares: f32;

fn activation(a: vec4f) -> vec4f {
  if (FIRST == 3u) {
    // Beyond 15 tanh is 1 in float32, and some devices' overflows.
    return 0.5 * a * (1.0 + tanh(clamp(0.7978845608 * (a + 0.044715 * a * a * a), vec4f(-15.0), vec4f(15.0))));
  }
  return a / (1.0 + exp(min(-a, vec4f(80.0))));
}

// Quad \`place\` of the inputs of row t.
fn input_of(place: u32, t: u32) -> vec4f {
  if (FIRST >= 2u) {
    let at = t * (INPUTS / 2u) + place;
    return activation(x[at]) * x[at + INPUTS / 4u];
  }
  let v = x[t * (INPUTS / 4u) + place];
  if (FIRST == 1u) {
    squares += dot(v, v);
    return v * gains[place];
  }
  return v;
}

// Inputs of four units from unit 4v on, and their sums: \`a\` those at the first places, \`b\` those at the second.
struct Inputs {
  a: mat4x4f,
  b: mat4x4f,
  sum_a: f32,
  sum_b: f32,
}

fn inputs_of(v: u32, t: u32) -> Inputs {
  let p = places(4u * v) / 4u;
  let q = places(4u * v + 1u) / 4u;
  let r = places(4u * v + 2u) / 4u;
  let s = places(4u * v + 3u) / 4u;
  let a = mat4x4f(input_of(p.x, t), input_of(q.x, t), input_of(r.x, t), input_of(s.x, t));
  let b = mat4x4f(input_of(p.y, t), input_of(q.y, t), input_of(r.y, t), input_of(s.y, t));
  let ones = vec4f(1.0);
  return Inputs(a, b, dot(a[0] + a[1] + a[2] + a[3], ones), dot(b[0] + b[1] + b[2] + b[3], ones));
}

// Sum of products of four columns.
fn products(x: mat4x4f, c0: vec4f, c1: vec4f, c2: vec4f, c3: vec4f) -> f32 {
  return dot(x[0], c0) + dot(x[1], c1) + dot(x[2], c2) + dot(x[3], c3);
}

fn low_products(q: vec4u, x: mat4x4f) -> f32 {
  return products(x, wholes(q.x, 15u), wholes(q.y, 15u), wholes(q.z, 15u), wholes(q.w, 15u));
}

fn six_products(low: vec4u, high: vec4u, x: mat4x4f) -> f32 {
  let q = (low & vec4u(0x0f0f0f0fu)) | ((high & vec4u(0x03030303u)) << vec4u(4u));
  return products(x, wholes(q.x, 63u), wholes(q.y, 63u), wholes(q.z, 63u), wholes(q.w, 63u));
}

// What the weights of units 4v … 4v + 3 of the row at byte \`row\` give with their inputs: what they share, such as scales, is
// read once.
fn wide_product(row: u32, v: u32, x: Inputs) -> f32 {
  switch KIND {
    // Q4_0, Q4_1
    case 2u: {
      let at = row + v * 18u;
      let q = words_of_pairs(at + 2u);
      return half(at) * (low_products(q, x.a) + low_products(q >> vec4u(4u), x.b) - 8.0 * (x.sum_a + x.sum_b));
    }
    case 3u: {
      let at = row + v * 20u;
      let dm = unpack2x16float(weights[at >> 2u]);
      let q = words(at + 4u);
      return dm.x * (low_products(q, x.a) + low_products(q >> vec4u(4u), x.b)) + dm.y * (x.sum_a + x.sum_b);
    }
    // Q8_0
    case 8u: {
      let at = row + v * 34u;
      let p = words_of_pairs(at + 2u);
      let q = words_of_pairs(at + 18u);
      let a = products(x.a, signed_wholes(p.x), signed_wholes(p.z), signed_wholes(q.x), signed_wholes(q.z));
      let b = products(x.b, signed_wholes(p.y), signed_wholes(p.w), signed_wholes(q.y), signed_wholes(q.w));
      return half(at) * (a + b);
    }
    // Q4_K, Q5_K: r is the place of the four units in their 256; groups 2j and 2j + 1 are theirs.
    case 12u, 13u: {
      let r = v & 7u;
      let j = r >> 1u;
      let block = row + (v >> 3u) * select(144u, 176u, KIND == 13u);
      let head = words(block);
      let dm = unpack2x16float(head.x);
      let shift = 16u * (j & 1u);
      let here = (head.yzw >> vec3u(shift)) & vec3u(0xffffu);
      var scales = here.x & 0x3f3fu;
      var minima = here.y & 0x3f3fu;
      if (j >= 2u) {
        scales = (here.z & 0x0f0fu) | ((here.x >> 2u) & 0x3030u);
        minima = ((here.z >> 4u) & 0x0f0fu) | ((here.y >> 2u) & 0x3030u);
      }
      let scale = dm.x * vec2f(vec2u(scales & 255u, scales >> 8u));
      let minimum = dm.y * vec2f(vec2u(minima & 255u, minima >> 8u));
      let q = words(block + select(16u, 48u, KIND == 13u) + j * 32u + (r & 1u) * 16u);
      var low = q & vec4u(0x0f0f0f0fu);
      var high = (q >> vec4u(4u)) & vec4u(0x0f0f0f0fu);
      if (KIND == 13u) {
        let fifth = words(block + 16u + (r & 1u) * 16u) >> vec4u(2u * j);
        low |= (fifth & vec4u(0x01010101u)) << vec4u(4u);
        high |= (fifth & vec4u(0x02020202u)) << vec4u(3u);
      }
      let a = products(x.a, wholes(low.x, 31u), wholes(low.y, 31u), wholes(low.z, 31u), wholes(low.w, 31u));
      let b = products(x.b, wholes(high.x, 31u), wholes(high.y, 31u), wholes(high.z, 31u), wholes(high.w, 31u));
      return scale.x * a + scale.y * b - minimum.x * x.sum_a - minimum.y * x.sum_b;
    }
    // Q6_K
    case 14u: {
      let at = row + (v >> 3u) * 210u;
      let side = (v >> 2u) & 1u;
      let t = v & 3u;
      let low = words_of_pairs(at + side * 64u + t * 16u);
      let high = words_of_pairs(at + 128u + side * 32u + (t & 1u) * 16u) >> vec4u(t & 2u);
      let group = at + 192u + side * 8u + t;
      let a = signed_byte(group) * (six_products(low, high, x.a) - 32.0 * x.sum_a);
      let b = signed_byte(group + 4u) * (six_products(low >> vec4u(4u), high >> vec4u(4u), x.b) - 32.0 * x.sum_b);
      return half(at + 208u) * (a + b);
    }
    default: {
      let p = unit(row, 4u * v);
      let q = unit(row, 4u * v + 1u);
      let r = unit(row, 4u * v + 2u);
      let s = unit(row, 4u * v + 3u);
      return products(x.a, p.a, q.a, r.a, s.a) + products(x.b, p.b, q.b, r.b, s.b);
    }
  }
}

// One row of x: a workgroup gives four neighbouring results, every thread of it some units of all four: one at a time, or
// four where WIDE.

override WIDE: bool = false;

const LANES = 64u;
const FOUR = 4u;

var<workgroup> parts: array<vec4f, LANES>;

// The sum of all threads' \`part\`, for thread 0: by few barriers, since all wait at each.
fn sum_of(part: vec4f, lane: u32) -> vec4f {
  parts[lane] = part;
  workgroupBarrier();
  if (lane < 8u) {
    let near = parts[lane] + parts[lane + 8u] + parts[lane + 16u] + parts[lane + 24u];
    parts[lane] = near + parts[lane + 32u] + parts[lane + 40u] + parts[lane + 48u] + parts[lane + 56u];
  }
  workgroupBarrier();
  return (parts[0] + parts[1]) + (parts[2] + parts[3]) + (parts[4] + parts[5]) + (parts[6] + parts[7]);
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

// What a thread has of the products of four rows of weights, which begin at bytes \`rows\`, with row t of x.
fn four_products(rows: vec4u, t: u32, lane: u32) -> vec4f {
  var part = vec4f(0.0);
  if (WIDE) {
    for (var v = lane; v < INPUTS / 32u; v += LANES) {
      let all = inputs_of(v, t);
      part += vec4f(
        wide_product(rows.x, v, all),
        wide_product(rows.y, v, all),
        wide_product(rows.z, v, all),
        wide_product(rows.w, v, all),
      );
    }
  } else {
    for (var u = lane; u < INPUTS / 8u; u += LANES) {
      let place = places(u) / 4u;
      let a = input_of(place.x, t);
      let b = input_of(place.y, t);
      let w0 = unit(rows.x, u);
      let w1 = unit(rows.y, u);
      let w2 = unit(rows.z, u);
      let w3 = unit(rows.w, u);
      part += vec4f(dot(w0.a, a), dot(w1.a, a), dot(w2.a, a), dot(w3.a, a));
      part += vec4f(dot(w0.b, b), dot(w1.b, b), dot(w2.b, b), dot(w3.b, b));
    }
  }
  return part;
}

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
  let part = four_products(rows, t, lane);
  var sum = sum_of(part, lane); // subgroups: var sum = sum_of_subgroups(part, lane, within, size);
  if (FIRST == 1u) {
    workgroupBarrier();
    let all = vec4f(squares, 0.0, 0.0, 0.0);
    sum /= sqrt(sum_of(all, lane).x / f32(INPUTS) + EPSILON); // subgroups: sum /= sqrt(sum_of_subgroups(all, lane, within, size).x / f32(INPUTS) + EPSILON);
  }
  if (lane == 0u) {
    write_four(t, first, 1u, sum);
  }
}

// Tokens that go to experts, whose matrices of \`rows\` rows lie one below the other; a buffer may hold some of all rows,
// from row \`column\` on.
//
//   expand_rows    out[t, first + slot · rows + n] = Σ_k W[e, k] · x[t, k]  (+ bias[e]),  e = expert(t, slot) · rows + n
//   collect_rows   out[t, n] = Σ_slot share(t, slot) · (Σ_k W[e, k] · x[t, slot, k]  (+ bias[e]))  (+ out[t, n])
//
//   params   count, column, stride, first, used, rows, whether out is added to (collect_rows)
//   chosen   (count, 2 · used): experts, then their shares (experts.wgsl)

@group(0) @binding(8) var<storage, read> chosen: array<f32>;

// Which of four rows from \`row\` of all experts on this buffer has; beyond the expert's last it has none.
fn are_here(row: u32, n: u32) -> vec4<bool> {
  let four = vec4u(0u, 1u, 2u, 3u);
  let at = vec4u(row) + four;
  let column = vec4u(params[1]);
  return (at >= column) & (at < column + vec4u(OUTPUTS)) & (vec4u(n) + four < vec4u(params[5]));
}

// Their places in this buffer; those that are elsewhere are taken for others.
fn places_here(row: u32) -> vec4u {
  let at = max(vec4u(row) + vec4u(0u, 1u, 2u, 3u), vec4u(params[1])) - vec4u(params[1]);
  return min(at, vec4u(OUTPUTS - 1u));
}

fn biases_of(rows: vec4u) -> vec4f {
  if (!HAS_BIAS) {
    return vec4f();
  }
  return vec4f(bias[rows.x], bias[rows.y], bias[rows.z], bias[rows.w]);
}

fn put_four(at: u32, sums: vec4f, here: vec4<bool>) {
  for (var i = 0u; i < 4u; i++) {
    if (here[i]) {
      out[at + i] = sums[i];
    }
  }
}

@compute @workgroup_size(LANES)
fn expand_rows(
  @builtin(workgroup_id) group: vec3u,
  @builtin(local_invocation_index) lane: u32,
// subgroups:  @builtin(subgroup_invocation_id) within: u32,
// subgroups:  @builtin(subgroup_size) size: u32,
) {
  let n = group.x * FOUR;
  let slot = group.y;
  let t = group.z;
  let used = params[4];
  if (t >= params[0] || slot >= used || n >= params[5]) {
    return;
  }
  let row = u32(chosen[t * 2u * used + slot]) * params[5] + n;
  let here = are_here(row, n);
  if (!any(here)) {
    return;
  }
  let rows = places_here(row);
  let part = four_products(rows * ROW_BYTES, t, lane);
  let sum = sum_of(part, lane); // subgroups: let sum = sum_of_subgroups(part, lane, within, size);
  if (lane == 0u) {
    put_four(t * params[2] + params[3] + slot * params[5] + n, sum + biases_of(rows), here);
  }
}

@compute @workgroup_size(LANES)
fn collect_rows(
  @builtin(workgroup_id) group: vec3u,
  @builtin(local_invocation_index) lane: u32,
// subgroups:  @builtin(subgroup_invocation_id) within: u32,
// subgroups:  @builtin(subgroup_size) size: u32,
) {
  let n = group.x * FOUR;
  let t = group.y;
  let used = params[4];
  if (t >= params[0] || n >= params[5]) {
    return;
  }
  var part = vec4f();
  for (var slot = 0u; slot < used; slot++) {
    let row = u32(chosen[t * 2u * used + slot]) * params[5] + n;
    let here = are_here(row, n);
    if (any(here)) {
      let share = select(vec4f(), vec4f(chosen[t * 2u * used + used + slot]), here);
      let rows = places_here(row);
      part += share * four_products(rows * ROW_BYTES, t * used + slot, lane);
      if (lane == 0u) {
        part += share * biases_of(rows);
      }
    }
  }
  let sum = sum_of(part, lane); // subgroups: let sum = sum_of_subgroups(part, lane, within, size);
  if (lane == 0u) {
    let at = t * params[2] + n;
    for (var i = 0u; i < min(4u, params[5] - n); i++) {
      var before = 0.0;
      if (params[6] != 0u) {
        before = out[at + i];
      }
      out[at + i] = before + sum[i];
    }
  }
}

// Many rows of x, in tiles of results: the sum goes in steps of some units, whose weights and inputs stand in workgroup
// memory, with float16 in that: there x is narrowed to it, each row of x divided by its entry of \`scales\`.
//
// Loops over what a thread holds are written out: some translators don't unroll any loop, and then it is held in memory.
//
// A workgroup of small_rows gives 16 by 16 results, every thread one of them; 4 units at a time.

const SIDE = 16u;
const QUADS = 8u;

alias Quad = vec4f; // f16: alias Quad = vec4h;

// (QUADS, SIDE)
var<workgroup> small_x: array<Quad, QUADS * SIDE>;
var<workgroup> small_w: array<Quad, QUADS * SIDE>;

@compute @workgroup_size(256)
fn small_rows(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let first_n = group.x * SIDE;
  let first_t = group.y * SIDE;
  let my_n = lane % SIDE;
  let my_t = lane / SIDE;
  // Half of the threads bring weights, half bring inputs: unit \`brings\` of row \`row\`.
  let row = (lane / 4u) % SIDE;
  let brings = lane % 4u;
  let to = 2u * brings * SIDE + row;
  var sum = 0.0;
  for (var first_u = 0u; first_u < INPUTS / 8u; first_u += 4u) {
    let u = first_u + brings;
    let is_there = u < INPUTS / 8u;
    if (lane < 64u) {
      var w = Unit(vec4f(), vec4f());
      if (is_there) {
        w = unit(min(first_n + row, OUTPUTS - 1u) * ROW_BYTES, u);
      }
      small_w[to] = Quad(w.a);
      small_w[to + SIDE] = Quad(w.b);
    } else if (lane < 128u) {
      var a = Quad();
      var b = Quad();
      if (is_there) {
        let place = places(u) / 4u + min(first_t + row, params[0] - 1u) * (INPUTS / 4u);
        a = x[place.x]; // f16: a = narrow[place.x];
        b = x[place.y]; // f16: b = narrow[place.y];
      }
      small_x[to] = a;
      small_x[to + SIDE] = b;
    }
    workgroupBarrier();
    for (var k = 0u; k < QUADS; k++) {
      sum += f32(dot(small_w[k * SIDE + my_n], small_x[k * SIDE + my_t]));
    }
    workgroupBarrier();
  }
  let t = first_t + my_t;
  let n = first_n + my_n;
  if (t < params[0] && n < OUTPUTS) {
    write(t, n, sum); // f16: write(t, n, sum * scales[t]);
  }
}

// A workgroup of many_rows gives 64 by 64 results, every thread 4 by 4 of them, 16 apart; 4 units at a time: 16 KiB of
// workgroup memory, with float16 8.

const TILE = 64u;

// (QUADS, TILE)
var<workgroup> tile_x: array<Quad, QUADS * TILE>;
var<workgroup> tile_w: array<Quad, QUADS * TILE>;

// Four sums, and what a quad of inputs gives with those of four rows of weights.
fn more(sums: vec4f, x: vec4f, w: mat4x4f) -> vec4f {
  return sums + x.x * w[0] + x.y * w[1] + x.z * w[2] + x.w * w[3];
}

// Results of row \`t\` at \`n\` and three more, \`step\` apart, so far as there are such.
fn write_four(t: u32, n: u32, step: u32, sums: vec4f) {
  if (t >= params[0]) {
    return;
  }
  if (n < OUTPUTS) {
    write(t, n, sums.x);
  }
  if (n + step < OUTPUTS) {
    write(t, n + step, sums.y);
  }
  if (n + 2u * step < OUTPUTS) {
    write(t, n + 2u * step, sums.z);
  }
  if (n + 3u * step < OUTPUTS) {
    write(t, n + 3u * step, sums.w);
  }
}

fn scaled(t: u32, n: u32, sums: vec4f) {
  write_four(t, n, SIDE, sums); // f16: write_four(t, n, SIDE, sums * scales[min(t, params[0] - 1u)]);
}

@compute @workgroup_size(256)
fn many_rows(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let first_n = group.x * TILE;
  let first_t = group.y * TILE;
  let my_n = lane % SIDE;
  let my_t = lane / SIDE;
  // What this thread brings into workgroup memory: unit \`brings\` of the four of row \`row\` of both tiles.
  let row = lane / 4u;
  let brings = lane % 4u;
  let weights_at = min(first_n + row, OUTPUTS - 1u) * ROW_BYTES;
  let inputs_at = min(first_t + row, params[0] - 1u) * (INPUTS / 4u);
  let to = 2u * brings * TILE + row;
  var s0 = vec4f();
  var s1 = vec4f();
  var s2 = vec4f();
  var s3 = vec4f();
  for (var first_u = 0u; first_u < INPUTS / 8u; first_u += 4u) {
    let u = first_u + brings;
    var w = Unit(vec4f(), vec4f());
    var a = Quad();
    var b = Quad();
    if (u < INPUTS / 8u) {
      w = unit(weights_at, u);
      let place = places(u) / 4u + inputs_at;
      a = x[place.x]; // f16: a = narrow[place.x];
      b = x[place.y]; // f16: b = narrow[place.y];
    }
    workgroupBarrier();
    tile_w[to] = Quad(w.a);
    tile_w[to + TILE] = Quad(w.b);
    tile_x[to] = a;
    tile_x[to + TILE] = b;
    workgroupBarrier();
    for (var k = 0u; k < QUADS; k++) {
      let n = k * TILE + my_n;
      let t = k * TILE + my_t;
      let w0 = vec4f(tile_w[n]);
      let w1 = vec4f(tile_w[n + 16u]);
      let v = transpose(mat4x4f(w0, w1, vec4f(tile_w[n + 32u]), vec4f(tile_w[n + 48u])));
      s0 = more(s0, vec4f(tile_x[t]), v);
      s1 = more(s1, vec4f(tile_x[t + 16u]), v);
      s2 = more(s2, vec4f(tile_x[t + 32u]), v);
      s3 = more(s3, vec4f(tile_x[t + 48u]), v);
    }
  }
  let t = first_t + my_t;
  let n = first_n + my_n;
  scaled(t, n, s0);
  scaled(t + 16u, n, s1);
  scaled(t + 32u, n, s2);
  scaled(t + 48u, n, s3);
}

// Many rows on a device with many registers: a workgroup gives a tile of 128 by 128 results, every thread of it 8 by 8, 16
// apart. The sum goes in steps of 2 units, 16 numbers, in 16 KiB of workgroup memory.

const WIDE_SIDE = 128u;
const WIDE_QUADS = 4u;

// (WIDE_QUADS, WIDE_SIDE)
var<workgroup> wide_x: array<vec4f, WIDE_QUADS * WIDE_SIDE>;
var<workgroup> wide_w: array<vec4f, WIDE_QUADS * WIDE_SIDE>;

@compute @workgroup_size(256)
fn wide_rows(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let first_n = group.x * WIDE_SIDE;
  let first_t = group.y * WIDE_SIDE;
  let my_n = lane % SIDE;
  let my_t = lane / SIDE;
  // What this thread brings: unit \`brings\` of the two of row \`row\` of both tiles.
  let row = lane / 2u;
  let brings = lane % 2u;
  let weights_at = min(first_n + row, OUTPUTS - 1u) * ROW_BYTES;
  let inputs_at = min(first_t + row, params[0] - 1u) * (INPUTS / 4u);
  let to = 2u * brings * WIDE_SIDE + row;
  var a0 = vec4f(); var a1 = vec4f(); var a2 = vec4f(); var a3 = vec4f();
  var a4 = vec4f(); var a5 = vec4f(); var a6 = vec4f(); var a7 = vec4f();
  var b0 = vec4f(); var b1 = vec4f(); var b2 = vec4f(); var b3 = vec4f();
  var b4 = vec4f(); var b5 = vec4f(); var b6 = vec4f(); var b7 = vec4f();
  for (var first_u = 0u; first_u < INPUTS / 8u; first_u += 2u) {
    let u = first_u + brings;
    var w = Unit(vec4f(), vec4f());
    var xa = vec4f();
    var xb = vec4f();
    if (u < INPUTS / 8u) {
      w = unit(weights_at, u);
      let place = places(u) / 4u + inputs_at;
      xa = x[place.x];
      xb = x[place.y];
    }
    workgroupBarrier();
    wide_w[to] = w.a;
    wide_w[to + WIDE_SIDE] = w.b;
    wide_x[to] = xa;
    wide_x[to + WIDE_SIDE] = xb;
    workgroupBarrier();
    for (var k = 0u; k < WIDE_QUADS; k++) {
      let n = k * WIDE_SIDE + my_n;
      let t = k * WIDE_SIDE + my_t;
      let v = transpose(mat4x4f(wide_w[n], wide_w[n + 16u], wide_w[n + 32u], wide_w[n + 48u]));
      let w = transpose(mat4x4f(wide_w[n + 64u], wide_w[n + 80u], wide_w[n + 96u], wide_w[n + 112u]));
      let x0 = wide_x[t];
      a0 = more(a0, x0, v);
      b0 = more(b0, x0, w);
      let x1 = wide_x[t + 16u];
      a1 = more(a1, x1, v);
      b1 = more(b1, x1, w);
      let x2 = wide_x[t + 32u];
      a2 = more(a2, x2, v);
      b2 = more(b2, x2, w);
      let x3 = wide_x[t + 48u];
      a3 = more(a3, x3, v);
      b3 = more(b3, x3, w);
      let x4 = wide_x[t + 64u];
      a4 = more(a4, x4, v);
      b4 = more(b4, x4, w);
      let x5 = wide_x[t + 80u];
      a5 = more(a5, x5, v);
      b5 = more(b5, x5, w);
      let x6 = wide_x[t + 96u];
      a6 = more(a6, x6, v);
      b6 = more(b6, x6, w);
      let x7 = wide_x[t + 112u];
      a7 = more(a7, x7, v);
      b7 = more(b7, x7, w);
    }
  }
  let t = first_t + my_t;
  let n = first_n + my_n;
  write_four(t, n, SIDE, a0);
  write_four(t, n + 64u, SIDE, b0);
  write_four(t + 16u, n, SIDE, a1);
  write_four(t + 16u, n + 64u, SIDE, b1);
  write_four(t + 32u, n, SIDE, a2);
  write_four(t + 32u, n + 64u, SIDE, b2);
  write_four(t + 48u, n, SIDE, a3);
  write_four(t + 48u, n + 64u, SIDE, b3);
  write_four(t + 64u, n, SIDE, a4);
  write_four(t + 64u, n + 64u, SIDE, b4);
  write_four(t + 80u, n, SIDE, a5);
  write_four(t + 80u, n + 64u, SIDE, b5);
  write_four(t + 96u, n, SIDE, a6);
  write_four(t + 96u, n + 64u, SIDE, b6);
  write_four(t + 112u, n, SIDE, a7);
  write_four(t + 112u, n + 64u, SIDE, b7);
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
`,
};

export const NARROW: ShaderFile = {
  name: "dense/narrow.wgsl",
  text: `// Rows of float32 as float16 and a factor each. Devices with \`f16\` only.
//
//   out[t, k] = x[t, k] / scales[t],  scales[t] = max_k |x[t, k]|
//
// So no activation is too large for float16, and no sum of four products with weights below 16000.
//
//
//   x       (count, INPUTS)      out     (count, INPUTS)      scales  (count)
//
// A workgroup takes a row.

enable f16;

// A multiple of 4.
override INPUTS: u32 = 4u;

const LANES = 64u;

@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4h>;
@group(0) @binding(3) var<storage, read_write> scales: array<f32>;

var<workgroup> largest: array<f32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let t = group.x;
  if (t >= params[0]) {
    return;
  }
  let first = t * (INPUTS / 4u);
  var most = 0.0;
  for (var k = lane; k < INPUTS / 4u; k += LANES) {
    let four = abs(x[first + k]);
    most = max(most, max(max(four.x, four.y), max(four.z, four.w)));
  }
  largest[lane] = most;
  for (var step = LANES / 2u; step > 0u; step /= 2u) {
    workgroupBarrier();
    if (lane < step) {
      largest[lane] = max(largest[lane], largest[lane + step]);
    }
  }
  workgroupBarrier();
  let scale = select(largest[0], 1.0, largest[0] == 0.0);
  for (var k = lane; k < INPUTS / 4u; k += LANES) {
    out[first + k] = vec4h(x[first + k] / scale);
  }
  if (lane == 0u) {
    scales[t] = scale;
  }
}
`,
};

export const NORM: ShaderFile = {
  name: "dense/norm.wgsl",
  text: `// RMS norm of runs of WIDTH columns: out = x / √(mean x² + EPSILON) · gains.
//
// A row has RUNS of them; those from FIRST on, NORMED of them, are normed, the others copied. The norm of whole rows is
// one run.
//
//   params  count      x  (count, RUNS · WIDTH)      gains  (WIDTH)      out  (count, RUNS · WIDTH)
//
// A workgroup takes a run.

// subgroups: enable subgroups;

override WIDTH: u32 = 1u;
override RUNS: u32 = 1u;
override FIRST: u32 = 0u;
override NORMED: u32 = 1u;
override EPSILON: f32 = 1e-5;
// A power of 2.
override LANES: u32 = 64u;

@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> gains: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

var<workgroup> parts: array<f32, LANES>;

// The sum of all threads' \`part\`, for all of them.
fn sum_of(part: f32, lane: u32) -> f32 {
  parts[lane] = part;
  for (var step = LANES / 2u; step > 0u; step /= 2u) {
    workgroupBarrier();
    if (lane < step) {
      parts[lane] += parts[lane + step];
    }
  }
  workgroupBarrier();
  return parts[0];
}

// The same by subgroups, whose threads are neighbours in all implementations that are known.
// subgroups: fn sum_of_subgroups(part: f32, lane: u32, within: u32, size: u32) -> f32 {
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
fn main(
  @builtin(workgroup_id) group: vec3u,
  @builtin(local_invocation_index) lane: u32,
// subgroups:   @builtin(subgroup_invocation_id) within: u32,
// subgroups:   @builtin(subgroup_size) size: u32,
) {
  let run = group.x;
  let t = group.y;
  if (run >= RUNS || t >= params[0]) {
    return;
  }
  let first = (t * RUNS + run) * WIDTH;
  if (run < FIRST || run >= FIRST + NORMED) {
    for (var i = lane; i < WIDTH; i += LANES) {
      out[first + i] = x[first + i];
    }
    return;
  }
  var part = 0.0;
  for (var i = lane; i < WIDTH; i += LANES) {
    part += x[first + i] * x[first + i];
  }
  let sum = sum_of(part, lane); // subgroups: let sum = sum_of_subgroups(part, lane, within, size);
  let factor = 1.0 / sqrt(sum / f32(WIDTH) + EPSILON);
  for (var i = lane; i < WIDTH; i += LANES) {
    out[first + i] = x[first + i] * factor * gains[i];
  }
}
`,
};

export const PAD: ShaderFile = {
  name: "dense/pad.wgsl",
  text: `// Rows made longer by zeros: out[t, i] = x[t, i] for i < WIDTH, else 0.
//
//   params  count      x  (count, WIDTH)      out  (count, PADDED)
//
// A thread gives one number.

override WIDTH: u32 = 1u;
override PADDED: u32 = 1u;

@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let i = id.x;
  let t = id.y;
  if (i >= PADDED || t >= params[0]) {
    return;
  }
  var number = 0.0;
  if (i < WIDTH) {
    number = x[t * WIDTH + i];
  }
  out[t * PADDED + i] = number;
}
`,
};

export const ROTATE: ShaderFile = {
  name: "dense/rotate.wgsl",
  text: `// Splits rows of q, k and v side by side, and turns q and k by their positions (RoPE, arXiv 2104.09864):
//   (a, b) becomes (a · cos − b · sin, b · cos + a · sin) for each pair of the first ROTATED columns of a head, which is
//   (2j, 2j + 1) where INTERLEAVED, else (j, j + ROTATED/2). Queries are then multiplied by the position's growth.
//
//   params     count
//   qkv        (count, (HEADS + 2 · KV_HEADS) · DIM)
//   table      (count, ROTATED + 1): cosines, sines, both with the rotation's magnitude; growth
//   queries    (count, HEADS, DIM)         keys, values  (count, KV_HEADS, DIM)
//   unrotated  (count, HEADS, DIM), of \`main_unrotated\` only: the queries as they were
//
// A thread gives one number of qkv's row.

override HEADS: u32 = 1u;
override KV_HEADS: u32 = 1u;
override DIM: u32 = 1u;
// Even.
override ROTATED: u32 = 0u;
override INTERLEAVED: bool = false;

@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> qkv: array<f32>;
@group(0) @binding(2) var<storage, read> table: array<f32>;
@group(0) @binding(3) var<storage, read_write> queries: array<f32>;
@group(0) @binding(4) var<storage, read_write> keys: array<f32>;
@group(0) @binding(5) var<storage, read_write> values: array<f32>;
@group(0) @binding(6) var<storage, read_write> unrotated: array<f32>;

// Column \`d\` of the head that begins at \`head\` of qkv, turned to position \`t\`.
fn turned(head: u32, d: u32, t: u32) -> f32 {
  let own = qkv[head + d];
  if (d >= ROTATED) {
    return own;
  }
  let pairs = ROTATED / 2u;
  let pair = select(d % pairs, d / 2u, INTERLEAVED);
  let is_second = select(d >= pairs, d % 2u == 1u, INTERLEAVED);
  let distance = select(pairs, 1u, INTERLEAVED);
  let partner = qkv[head + select(d + distance, d - distance, is_second)];
  let at = t * (ROTATED + 1u) + pair;
  return own * table[at] + select(-partner, partner, is_second) * table[at + pairs];
}

fn put(i: u32, t: u32) {
  let q = HEADS * DIM;
  let kv = KV_HEADS * DIM;
  let row = t * (q + 2u * kv);
  let d = i % DIM;
  let head = row + i - d;
  if (i < q) {
    queries[t * q + i] = turned(head, d, t) * table[t * (ROTATED + 1u) + ROTATED];
  } else if (i < q + kv) {
    keys[t * kv + i - q] = turned(head, d, t);
  } else {
    values[t * kv + i - q - kv] = qkv[row + i];
  }
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  if (id.x < (HEADS + 2u * KV_HEADS) * DIM && id.y < params[0]) {
    put(id.x, id.y);
  }
}

@compute @workgroup_size(64)
fn main_unrotated(@builtin(global_invocation_id) id: vec3u) {
  let i = id.x;
  let t = id.y;
  if (i >= (HEADS + 2u * KV_HEADS) * DIM || t >= params[0]) {
    return;
  }
  put(i, t);
  if (i < HEADS * DIM) {
    unrotated[t * HEADS * DIM + i] = qkv[t * (HEADS + 2u * KV_HEADS) * DIM + i];
  }
}
`,
};

export const SCALE: ShaderFile = {
  name: "dense/scale.wgsl",
  text: `// out = FACTOR · x in the SPAN columns from FIRST on, and x in the others; (count, WIDTH) each.
//
//   params  count
//
// A thread gives one number.

override WIDTH: u32 = 1u;
override FIRST: u32 = 0u;
override SPAN: u32 = 1u;
override FACTOR: f32 = 1.0;

@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let i = id.x;
  let t = id.y;
  if (i >= WIDTH || t >= params[0]) {
    return;
  }
  let at = t * WIDTH + i;
  out[at] = x[at] * select(1.0, FACTOR, i >= FIRST && i < FIRST + SPAN);
}
`,
};
