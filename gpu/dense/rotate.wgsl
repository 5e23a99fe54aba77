// Splits rows of q, k and v side by side, and turns q and k by their positions (RoPE, arXiv 2104.09864):
//   (a, b) becomes (a · cos − b · sin, b · cos + a · sin) for each pair of the first ROTATED columns of a head, which is
//   (2j, 2j + 1) where INTERLEAVED, else (j, j + ROTATED/2). Queries are then multiplied by the position's growth.
//
//   params     count
//   qkv        (count, (HEADS + 2 · KV_HEADS) · DIM)
//   table      (count, ROTATED + 1): cosines, sines, both with the rotation's magnitude; growth
//   queries    (count, HEADS, DIM)         keys, values  (count, KV_HEADS, DIM)
//   unrotated  (count, HEADS, DIM), of `main_unrotated` only: the queries as they were
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

// Column `d` of the head that begins at `head` of qkv, turned to position `t`.
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
