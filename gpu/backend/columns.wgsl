// Brings rows of attention together, column by column.
//
//   window:  mean, pooledMean, pooledMax and variance over a group's query heads and queries, [planes, kvHeads, prefix]
//   reduce:  sum and maximum over queries, [2, heads, pitch]
//
// A run of query heads and queries is at hand; planes hold what runs before gave. One invocation takes one column of one
// KV head (window) or query head (reduce) and walks over its rows: head by head, query by query.
// Planes of window: 0 mean's sum, 1 pooledMean's sum, 2 pooledMax, 3 variance's sum, 4 and 5 Welford's mean and squares.

/** Query heads that share a KV head. */
override GROUP: u32 = 1u;

/**
 * first query head, query heads, first query, queries, pitch, prefix, all queries, KV heads (window) or heads (reduce),
 * first measure, kernel (window) or whether queries are weighed (reduce)
 */
@group(0) @binding(0) var<storage, read> params: array<u32>;
/** [query heads * queries of the run, pitch] */
@group(0) @binding(1) var<storage, read> attention: array<f32>;
/** Of rows (window); the weights of all queries, four by four (reduce). */
@group(0) @binding(2) var<storage, read> measures: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> planes: array<f32>;

@compute @workgroup_size(64)
fn window(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let prefix = params[5];
  let i = group.x * 64u + local;
  if (i >= prefix) { return; }
  let kv_head = params[0] / GROUP + group.y;
  let plane = params[7] * prefix;
  let at = kv_head * prefix + i;
  var mean = planes[at];
  var pooled_mean = planes[plane + at];
  var pooled_max = planes[2u * plane + at];
  var variance = planes[3u * plane + at];
  var running = planes[4u * plane + at];
  var squares = planes[5u * plane + at];
  let reach = params[9] / 2u;
  let first = i - min(i, reach);
  let last = min(i + reach, prefix - 1u);
  let queries = params[3];
  let begin = max(kv_head * GROUP, params[0]);
  let end = min((kv_head + 1u) * GROUP, params[0] + params[1]);
  for (var head = begin; head < end; head++) {
    for (var t = 0u; t < queries; t++) {
      let r = (head - params[0]) * queries + t;
      let p = attention[r * params[4] + i];
      mean += p;
      let seen = params[2] + t;
      if (seen == 0u) {
        running = 0.0;
        squares = 0.0;
      }
      let off = p - running;
      running += off / f32(seen + 1u);
      squares += off * (p - running);
      if (seen + 1u == params[6] && seen > 0u) { variance += squares / f32(seen); }
      var pooled = 0.0;
      for (var j = first; j <= last; j++) { pooled += attention[r * params[4] + j]; }
      let importance = pooled / f32(params[9]) * measures[params[8] + r].z;
      pooled_mean += importance;
      pooled_max = max(pooled_max, importance);
    }
  }
  planes[at] = mean;
  planes[plane + at] = pooled_mean;
  planes[2u * plane + at] = pooled_max;
  planes[3u * plane + at] = variance;
  planes[4u * plane + at] = running;
  planes[5u * plane + at] = squares;
}

@compute @workgroup_size(64)
fn reduce(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let pitch = params[4];
  let i = group.x * 64u + local;
  if (i >= pitch) { return; }
  let head = params[0] + group.y;
  let plane = params[7] * pitch;
  let at = head * pitch + i;
  var sum = planes[at];
  var most = planes[plane + at];
  for (var t = 0u; t < params[3]; t++) {
    var p = attention[(group.y * params[3] + t) * pitch + i];
    if (params[9] != 0u) {
      let query = params[2] + t;
      p *= measures[query / 4u][query % 4u];
    }
    sum += p;
    most = max(most, p);
  }
  planes[at] = sum;
  planes[plane + at] = most;
}
