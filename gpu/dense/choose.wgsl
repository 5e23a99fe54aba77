// The greedy choice: the lowest token of the largest logit, and that logit.
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

// `rank` orders as the logits do.
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
