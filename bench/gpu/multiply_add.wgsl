// The device's multiply-add ceiling: params[1] times four sums s = s * a + b, four numbers each, in every invocation.

@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> numbers: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> to: array<vec4f>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u) {
  if (id.x >= params[0]) { return; }
  let a = numbers[0];
  let b = numbers[1];
  var s = vec4f(f32(id.x));
  var t = s + 1.0;
  var u = s + 2.0;
  var v = s + 3.0;
  for (var i = 0u; i < params[1]; i++) {
    s = s * a + b;
    t = t * a + b;
    u = u * a + b;
    v = v * a + b;
  }
  to[id.x] = s + t + u + v;
}
