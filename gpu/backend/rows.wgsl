// Moves rows as they are stored, and reads them as float32.
//
//   gather: to[i] = from[list[i]], whole rows of keys and of values, of all heads.  Rows that stay after an eviction.
//   floats: out[i, d] = number d of row list[i], or of row i where there is no list.
//   turned: the same with the pairs of RoPE turned: (a, b) -> (a cos - b sin, b cos + a sin).
//
// One invocation moves one word of both (gather; a head for each group.z), or computes one number (floats, turned), of the
// last two bounded by D.

override D: u32 = 64u;
/** 0: f32, 1: f16, 2: int8; see store.wgsl for how rows lie. */
override KIND: u32 = 0u;
/** Numbers of a row that turn, and how far apart those of a pair are: 1 (interleaved), or ROTATED / 2. */
override ROTATED: u32 = 0u;
override PARTNER: u32 = 1u;

/**
 * rows, the word where the head's row 0 would lie (modulo 2^32: a buffer may begin with a later row), start in list (or
 * 0xffffffff: none), first row; gather: of each head rows, the same word, start in list, first word of `to`.
 */
@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> stored: array<u32>;
@group(0) @binding(2) var<storage, read> list: array<u32>;
@group(0) @binding(3) var<storage, read_write> words: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
/** Cosine and sine of each pair, [turns, ROTATED / 2]. */
@group(0) @binding(5) var<storage, read> circle: array<vec2f>;
/** Values, of gather: `stored` and `words` are keys there. */
@group(0) @binding(6) var<storage, read> stored_values: array<u32>;
@group(0) @binding(7) var<storage, read_write> value_words: array<u32>;

fn stride() -> u32 {
  if (KIND == 0u) { return D; }
  return select((D + 3u) / 4u + 1u, (D + 1u) / 2u, KIND == 1u);
}

/** Exact, unlike unpack2x16float, which may lose subnormals. */
fn half(bits: u32) -> f32 {
  let exponent = (bits >> 10u) & 31u;
  let mantissa = bits & 1023u;
  let magnitude = select(
    bitcast<f32>(((exponent + 112u) << 23u) | (mantissa << 13u)),
    f32(mantissa) * 5.9604644775390625e-8,
    exponent == 0u,
  );
  return select(magnitude, -magnitude, (bits & 0x8000u) != 0u);
}

fn number(row: u32, d: u32) -> f32 {
  let at = params[1] + row * stride();
  if (KIND == 0u) { return bitcast<f32>(stored[at + d]); }
  if (KIND == 1u) { return half((stored[at + d / 2u] >> (16u * (d & 1u))) & 0xffffu); }
  let whole = extractBits(bitcast<i32>(stored[at + 1u + d / 4u]), 8u * (d & 3u), 8u);
  return f32(whole) * bitcast<f32>(stored[at]);
}

fn thread(group: vec3u, groups: vec3u, local: u32) -> u32 {
  return (group.y * groups.x + group.x) * 64u + local;
}

@compute @workgroup_size(64)
fn gather(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) local: u32,
) {
  let i = thread(group, groups, local);
  let each = stride();
  let head = 4u * group.z;
  if (i >= params[head] * each) { return; }
  let from_word = params[head + 1u] + list[params[head + 2u] + i / each] * each + i % each;
  let to_word = params[head + 3u] + i;
  words[to_word] = stored[from_word];
  value_words[to_word] = stored_values[from_word];
}

@compute @workgroup_size(64)
fn floats(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) local: u32,
) {
  let i = thread(group, groups, local);
  if (i >= params[0] * D) { return; }
  var row = params[3] + i / D;
  if (params[2] != 0xffffffffu) { row = list[params[2] + i / D]; }
  out[i] = number(row, i % D);
}

@compute @workgroup_size(64)
fn turned(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) local: u32,
) {
  let i = thread(group, groups, local);
  if (i >= params[0] * D) { return; }
  let row = params[3] + i / D;
  let d = i % D;
  let x = number(row, d);
  if (d >= ROTATED) {
    out[i] = x;
    return;
  }
  let second = select(d >= PARTNER, (d & 1u) == 1u, PARTNER == 1u);
  let pair = select(d % PARTNER, d / 2u, PARTNER == 1u);
  let turn = circle[list[row] * (ROTATED / 2u) + pair];
  let other = number(row, select(d + PARTNER, d - PARTNER, second));
  out[i] = select(x * turn.x - other * turn.y, x * turn.x + other * turn.y, second);
}
