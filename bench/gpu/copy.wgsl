// The device's copy ceiling: to[i] = numbers[i], 16 bytes each. One invocation copies four, a workgroup's side by side;
// params[0] bounds them.

@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> numbers: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> to: array<vec4f>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
  let first = (group.y * groups.x + group.x) * 1024u + local;
  if (first + 768u >= params[0]) { return; }
  let a = numbers[first];
  let b = numbers[first + 256u];
  let c = numbers[first + 512u];
  let d = numbers[first + 768u];
  to[first] = a;
  to[first + 256u] = b;
  to[first + 512u] = c;
  to[first + 768u] = d;
}
