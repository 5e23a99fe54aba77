// A layer's short convolution over its last rows, channel by channel (model/decode/convolution.ts):
//   out[t, c] = queries[t, c] · Σ_j taps[c, j] · row[length − count + t − TAPS + 1 + j, c], before the first row zeros
// Channel c of query head 2g is in the keys of KV head g, of head 2g + 1 in its values; rows are float32, D numbers each.
//
//   params   count, first query, first KV head, KV heads, first row of the dispatch, the row behind its last; then of each KV
//            head the word where row 0 would lie (modulo 2^32), and its length
//   queries  (count, CHANNELS)      taps  (CHANNELS, TAPS)      out  (count, CHANNELS)
//
// What rows of a head's later buffers give is added to what those before gave.
// A thread gives one number: group.x is 64 channels of these KV heads, group.y a query.

override D: u32 = 1u;
override TAPS: u32 = 1u;
// Of all KV heads.
override CHANNELS: u32 = 2u;

@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> queries: array<f32>;
@group(0) @binding(2) var<storage, read> keys: array<f32>;
@group(0) @binding(3) var<storage, read> values: array<f32>;
@group(0) @binding(4) var<storage, read> taps: array<f32>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let count = params[0];
  let t = params[1] + id.y;
  let head = id.x / (2u * D);
  if (head >= params[3] || t >= count) {
    return;
  }
  let d = id.x % D;
  let is_second = (id.x / D) % 2u == 1u;
  let word = params[6u + 2u * head] + d;
  // Rows up to the query's own: taps before the first of them weigh nothing.
  let seen = params[7u + 2u * head] - count + t + 1u;
  let channel = params[2] * 2u * D + id.x;
  var sum = 0.0;
  for (var j = TAPS - min(TAPS, seen); j < TAPS; j++) {
    let row = seen + j - TAPS;
    if (row < params[4] || row >= params[5]) {
      continue;
    }
    let at = word + row * D;
    let x = select(keys[at], values[at], is_second);
    sum += taps[channel * TAPS + j] * x;
  }
  let at = t * CHANNELS + channel;
  var before = 0.0;
  if (params[4] > 0u) {
    before = out[at];
  }
  out[at] = before + sum * queries[at];
}
