// The experts that each token goes to: those of its `used` largest numbers, the lower one among equals.
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

// Whether expert `a` comes before `b`, which may be none.
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
