//! palisade's kernels: ragged key/value rows and everything that runs over them, as a C ABI on numbers.
//!
//! The other side (`wasm/module.ts`, the only importer) holds handles, never addresses of rows. It asks for buffers,
//! writes inputs and reads outputs there, and passes their handles to each call. Every call returns 0 (or a handle or
//! count) when it was done and a negative [`Error::code`] when it was refused; a refused call has changed nothing.
//!
//! No wasm-bindgen: the border is twenty functions of numbers, so generated glue would only add a build tool, a
//! second module format and copies. No threads: a worker makes an instance of its own.

mod attention;
mod blocks;
mod byte_panels;
mod dense;
mod floats;
mod gate;
mod inputs;
mod int8;
mod joined;
mod lanes;
mod math;
mod memory;
mod nibbles;
mod norms;
mod observe;
mod packed;
mod panel;
mod prefill;
mod reduced;
mod row_panels;
mod rows;
mod select;
mod solve;
mod stored;
mod stream;
mod superblocks;
#[cfg(test)]
mod testing;
mod tile;
#[cfg(test)]
mod twin;
mod weights;
mod wiping;
mod woven;

use attention::Extras;
use memory::{Buffer, Error, Result, Slab};
use observe::Reductions;
use rows::{Layer, MAX_ROWS};
use std::cell::RefCell;

#[global_allocator]
static ALLOCATOR: wiping::Wiping = wiping::Wiping;

struct State {
    buffers: Slab<Buffer>,
    layers: Slab<Layer>,
}

thread_local! {
    static STATE: RefCell<State> = const { RefCell::new(State { buffers: Slab::new(), layers: Slab::new() }) };
}

fn run(body: impl FnOnce(&mut State) -> Result<i32>) -> i32 {
    STATE.with(|state| body(&mut state.borrow_mut()).unwrap_or_else(Error::code))
}

/// A count from outside: not negative, not above `MAX_ROWS`.
fn size(x: i32) -> Result<usize> {
    usize::try_from(x).ok().filter(|&x| x <= MAX_ROWS).ok_or(Error::Shape)
}

/// Product of lengths; too large for any buffer where it overflows.
fn product(lengths: &[usize]) -> Result<usize> {
    lengths.iter().try_fold(1usize, |a, &b| a.checked_mul(b)).ok_or(Error::Buffer)
}

type Lent<'a> = Option<&'a mut Buffer>;

fn input<'a, T: memory::Plain>(buffer: &'a Lent, length: usize) -> Result<&'a [T]> {
    match buffer {
        Some(buffer) => buffer.view(length),
        None => Err(Error::Handle),
    }
}

/// A buffer to write; nothing where it was not given.
fn output<'a, T: memory::Plain>(buffer: &'a mut Lent, length: usize) -> Result<&'a mut [T]> {
    match buffer {
        Some(buffer) => buffer.view_mut(length),
        None => Ok(&mut []),
    }
}

/// Says whether the engine joins neighbouring vectors: the results are the same, the speed is not.
#[no_mangle]
pub extern "C" fn join_vectors(joined: i32) -> i32 {
    joined::set_vectors(joined != 0);
    0
}

/// A zeroed buffer of `bytes` bytes, 16-byte aligned. Returns its handle.
#[no_mangle]
pub extern "C" fn buffer_new(bytes: i32) -> i32 {
    run(|state| state.buffers.insert(Buffer::zeros(usize::try_from(bytes).map_err(|_| Error::Shape)?)?))
}

/// The same with whatever is at its place: to be written before it is read.
#[no_mangle]
pub extern "C" fn buffer_room(bytes: i32) -> i32 {
    run(|state| state.buffers.insert(Buffer::room(usize::try_from(bytes).map_err(|_| Error::Shape)?)?))
}

/// Where the buffer's bytes stand in the memory, as an unsigned number; 0 for a handle that is none.
#[no_mangle]
pub extern "C" fn buffer_address(buffer: i32) -> i32 {
    STATE.with(|state| state.borrow_mut().buffers.get(buffer).map_or(0, |buffer| buffer.address() as i32))
}

#[no_mangle]
pub extern "C" fn buffer_free(buffer: i32) -> i32 {
    run(|state| state.buffers.remove(buffer).map(|_| 0))
}

/// Empty rows with room for `reserve` in each head, stored as `kind`: 0 float32, 1 float16, 2 int8, 3 four bits; where
/// keys and values differ 16 + 4 · the keys' + the values'. `reach`: rows that a query looks back, its own among them; 0
/// for all. Returns a handle.
#[no_mangle]
pub extern "C" fn rows_new(heads: i32, kv_heads: i32, dim: i32, reserve: i32, kind: i32, reach: i32) -> i32 {
    run(|state| {
        let numbers = if kind < 16 { [kind, kind] } else { [(kind - 16) / 4, (kind - 16) % 4] };
        let [keys, values] = numbers.map(stored::Kind::from_number);
        let kinds = [keys.ok_or(Error::Shape)?, values.ok_or(Error::Shape)?];
        let mut layer = Layer::new(size(heads)?, size(kv_heads)?, size(dim)?, size(reserve)?, kinds)?;
        if reach != 0 {
            layer.reach = size(reach)?;
        }
        state.layers.insert(layer)
    })
}

/// Gives each query head a logit that takes its share of every softmax and has no row: `(heads)`, finite.
#[no_mangle]
pub extern "C" fn rows_nulls(rows: i32, logits: i32) -> i32 {
    run(|state| {
        let layer = state.layers.get(rows)?;
        state.buffers.lend([logits], |[logits]| layer.take_nulls(input(&logits, layer.heads)?).map(|()| 0))
    })
}

#[no_mangle]
pub extern "C" fn rows_free(rows: i32) -> i32 {
    run(|state| state.layers.remove(rows).map(|_| 0))
}

/// Pages of 64 rows held by all heads.
#[no_mangle]
pub extern "C" fn rows_pages(rows: i32) -> i32 {
    run(|state| state.layers.get(rows).map(|layer| layer.pages() as i32))
}

/// Sixteenths of the bytes that all pages hold.
#[no_mangle]
pub extern "C" fn rows_quads(rows: i32) -> i32 {
    run(|state| state.layers.get(rows).map(|layer| (layer.bytes() / 16) as i32))
}

/// Packs what is of four bits: all rows of all heads.
#[no_mangle]
pub extern "C" fn rows_pack(rows: i32) -> i32 {
    run(|state| state.layers.get(rows)?.pack().map(|()| 0))
}

/// How many rows of a head are packed; with buffers (else −1) also writes their codes, scales and zeros, one behind the
/// other (`nibbles::whole_bytes`).
#[no_mangle]
pub extern "C" fn rows_packed(rows: i32, kv_head: i32, keys: i32, values: i32) -> i32 {
    run(|state| {
        let (layer, kv_head) = (state.layers.get(rows)?, size(kv_head)?);
        let packed = layer.rows.get(kv_head).ok_or(Error::Shape)?.packed;
        state.buffers.lend([keys, values], |parts| {
            for (part, buffer) in rows::PARTS.into_iter().zip(parts) {
                if let Some(buffer) = buffer {
                    let length = buffer.len();
                    layer.give_packed(kv_head, part, buffer.view_mut(length)?)?;
                }
            }
            Ok(packed as i32)
        })
    })
}

/// Takes them back: a head's first `count` rows are packed so. −1 for a part that isn't of four bits.
#[no_mangle]
pub extern "C" fn rows_take_packed(rows: i32, kv_head: i32, count: i32, keys: i32, values: i32) -> i32 {
    run(|state| {
        let (layer, kv_head, count) = (state.layers.get(rows)?, size(kv_head)?, size(count)?);
        state.buffers.lend([keys, values], |[keys, values]| {
            let parts = [&keys, &values].map(|buffer| buffer.as_ref().map_or(&[][..], |buffer| buffer.as_slice()));
            layer.take_packed(kv_head, count, parts).map(|()| 0)
        })
    })
}

/// `keys`, `values`: `(count, kv_heads, dim)`.
#[no_mangle]
pub extern "C" fn rows_append(rows: i32, keys: i32, values: i32, count: i32) -> i32 {
    run(|state| {
        let (layer, count) = (state.layers.get(rows)?, size(count)?);
        let length = product(&[count, layer.kv_heads, layer.dim])?;
        state.buffers.lend([keys, values], |[keys, values]| {
            layer.append(input(&keys, length)?, input(&values, length)?, count).map(|()| 0)
        })
    })
}

/// Attention of `count` queries that belong to the `count` rows of each head in front of its last `behind`: query `t`
/// sees rows `0 … length − behind − count + t`. `queries`, `outputs`: `(count, heads, dim)`. −1 where not wanted:
/// `log_sum_exp`: `(count, heads)`; `column_sum`, `column_max`: `(heads, longest head rounded up to 64)`, added to and
/// raised; `probabilities`: the softmax of the last query, head after head, each as long as its KV head less `behind`.
/// `row_weights`: `(count)`, by what each query counts in the columns, 1 where not given.
/// `masked` 0: any queries, each of which sees every row, whatever `behind`; then there are no probabilities. 2: a single
/// query may read a part of the rows (`rows_foresee`).
#[no_mangle]
pub extern "C" fn rows_attend(
    rows: i32,
    queries: i32,
    count: i32,
    behind: i32,
    outputs: i32,
    log_sum_exp: i32,
    column_sum: i32,
    column_max: i32,
    probabilities: i32,
    masked: i32,
    row_weights: i32,
) -> i32 {
    run(|state| {
        let (layer, count, behind) = (state.layers.get(rows)?, size(count)?, size(behind)?);
        let length = product(&[count, layer.heads, layer.dim])?;
        let columns = product(&[layer.heads, attention::column_pitch(layer)])?;
        let shares = layer.rows.iter().map(|head| head.length.saturating_sub(behind) * layer.group()).sum();
        let handles = [queries, outputs, log_sum_exp, column_sum, column_max, probabilities, row_weights];
        state.buffers.lend(handles, |[queries, mut out, mut lse, mut sums, mut maxima, mut shares_out, weights]| {
            let mut extras = Extras {
                log_sum_exp: output(&mut lse, count * layer.heads)?,
                column_sum: output(&mut sums, columns)?,
                column_max: output(&mut maxima, columns)?,
                probabilities: output(&mut shares_out, shares)?,
                row_weights: if weights.is_some() { input(&weights, count)? } else { &[] },
            };
            let out = out.as_mut().ok_or(Error::Handle)?.view_mut(length)?;
            let queries = input(&queries, length)?;
            match masked {
                0 => attention::unmasked(layer, queries, count, out, &mut extras).map(|()| 0),
                _ => attention::causal(layer, queries, count, behind, out, &mut extras, masked == 2).map(|()| 0),
            }
        })
    })
}

/// Reductions of the last `window` queries' softmax; see `observe::Reductions` for the shapes. −1: not wanted.
#[no_mangle]
pub extern "C" fn rows_observe(
    rows: i32,
    queries: i32,
    window: i32,
    kernel: i32,
    mean: i32,
    variance: i32,
    entropy: i32,
    pooled_mean: i32,
    pooled_max: i32,
    mass: i32,
    log_sum_exp: i32,
) -> i32 {
    run(|state| {
        let (layer, window) = (state.layers.get(rows)?, size(window)?);
        let length = product(&[window, layer.heads, layer.dim])?;
        let prefix = layer.common_length()?.checked_sub(window).ok_or(Error::Shape)?;
        let (columns, row) = (product(&[layer.kv_heads, prefix])?, product(&[layer.heads, window])?);
        let handles = [queries, mean, variance, entropy, pooled_mean, pooled_max, mass, log_sum_exp];
        state.buffers.lend(handles, |[queries, mut a, mut b, mut c, mut d, mut e, mut f, mut g]| {
            let mut reductions = Reductions {
                mean: output(&mut a, columns)?,
                variance: output(&mut b, columns)?,
                entropy: output(&mut c, row)?,
                pooled_mean: output(&mut d, columns)?,
                pooled_max: output(&mut e, columns)?,
                mass: output(&mut f, row)?,
                log_sum_exp: output(&mut g, row)?,
            };
            observe::observe(layer, input(&queries, length)?, window, size(kernel)?, &mut reductions).map(|()| 0)
        })
    })
}

/// Adds the share of `width` rows of Wo, `(width, heads · dim)`, to `norms`, `(kv_heads, rows)`.
#[no_mangle]
pub extern "C" fn rows_norms(rows: i32, wo: i32, width: i32, norms: i32) -> i32 {
    run(|state| {
        let (layer, width) = (state.layers.get(rows)?, size(width)?);
        let (length, count) =
            (product(&[width, layer.heads, layer.dim])?, product(&[layer.kv_heads, layer.common_length()?])?);
        state.buffers.lend([wo, norms], |[wo, mut norms]| {
            let norms = norms.as_mut().ok_or(Error::Handle)?.view_mut(count)?;
            norms::add_norms(layer, input(&wo, length)?, width, norms).map(|()| 0)
        })
    })
}

/// Adds the share of `width` rows of Wo to `gram`, `(dim, heads · dim)`: Wo_hᵀ · Wo_h of each head.
#[no_mangle]
pub extern "C" fn rows_gram(rows: i32, wo: i32, width: i32, gram: i32) -> i32 {
    run(|state| {
        let (layer, width) = (state.layers.get(rows)?, size(width)?);
        let length = product(&[width, layer.heads, layer.dim])?;
        let matrices = product(&[layer.dim, layer.heads, layer.dim])?;
        state.buffers.lend([wo, gram], |[wo, mut gram]| {
            let gram = gram.as_mut().ok_or(Error::Handle)?.view_mut(matrices)?;
            norms::add_gram(layer, input(&wo, length)?, width, gram).map(|()| 0)
        })
    })
}

/// Adds √(v · M · v) of every value to `norms`, `(kv_heads, rows)`; `gram` as `rows_gram` leaves it.
#[no_mangle]
pub extern "C" fn rows_gram_norms(rows: i32, gram: i32, norms: i32) -> i32 {
    run(|state| {
        let layer = state.layers.get(rows)?;
        let matrices = product(&[layer.dim, layer.heads, layer.dim])?;
        let count = product(&[layer.kv_heads, layer.common_length()?])?;
        state.buffers.lend([gram, norms], |[gram, mut norms]| {
            let norms = norms.as_mut().ok_or(Error::Handle)?.view_mut(count)?;
            norms::gram_norms(layer, input(&gram, matrices)?, norms).map(|()| 0)
        })
    })
}

/// `counts`: `(kv_heads)` int32; `kept`: the kept rows of one head after the other, `total` int32 in all.
#[no_mangle]
pub extern "C" fn rows_compact(rows: i32, kept: i32, total: i32, counts: i32) -> i32 {
    run(|state| {
        let (layer, total) = (state.layers.get(rows)?, size(total)?);
        state.buffers.lend([kept, counts], |[kept, counts]| {
            layer.compact(input(&kept, total)?, input(&counts, layer.kv_heads)?).map(|()| 0)
        })
    })
}

/// `lengths`: `(kv_heads)` int32, none above the head's own.
#[no_mangle]
pub extern "C" fn rows_truncate(rows: i32, lengths: i32) -> i32 {
    run(|state| {
        let layer = state.layers.get(rows)?;
        state.buffers.lend([lengths], |[lengths]| layer.truncate(input(&lengths, layer.kv_heads)?).map(|()| 0))
    })
}

/// Gives one head other values, `(length, dim)`, and what is added to its rows' scaled logits, `(length)`.
#[no_mangle]
pub extern "C" fn rows_refit(rows: i32, kv_head: i32, values: i32, bias: i32) -> i32 {
    run(|state| {
        let (layer, kv_head) = (state.layers.get(rows)?, size(kv_head)?);
        let length = layer.rows.get(kv_head).ok_or(Error::Shape)?.length;
        let floats = product(&[length, layer.dim])?;
        state.buffers.lend([values, bias], |[values, bias]| {
            layer.refit(kv_head, input(&values, floats)?, input(&bias, length)?).map(|()| 0)
        })
    })
}

/// How many rows of a head have a bias, from the first on; with a buffer (else −1) also writes them.
#[no_mangle]
pub extern "C" fn rows_bias(rows: i32, kv_head: i32, bias: i32) -> i32 {
    run(|state| {
        let (layer, kv_head) = (state.layers.get(rows)?, size(kv_head)?);
        let known = layer.rows.get(kv_head).ok_or(Error::Shape)?.bias();
        state.buffers.lend([bias], |[mut out]| {
            if out.is_some() {
                output::<f32>(&mut out, known.len())?.copy_from_slice(known);
            }
            Ok(known.len() as i32)
        })
    })
}

/// Keeps only these channels, `count` int32 ascending, of the keys of a head's rows, all but the last `recent`; once.
#[no_mangle]
pub extern "C" fn rows_thin(rows: i32, kv_head: i32, channels: i32, count: i32, recent: i32) -> i32 {
    run(|state| {
        let (layer, kv_head, count, recent) = (state.layers.get(rows)?, size(kv_head)?, size(count)?, size(recent)?);
        state.buffers.lend([channels], |[channels]| layer.thin(kv_head, input(&channels, count)?, recent).map(|()| 0))
    })
}

/// How many of a head's rows, from the first on, have thin keys.
#[no_mangle]
pub extern "C" fn rows_thinned(rows: i32, kv_head: i32) -> i32 {
    run(|state| {
        let (layer, kv_head) = (state.layers.get(rows)?, size(kv_head)?);
        layer.rows.get(kv_head).map(|head| head.thinned() as i32).ok_or(Error::Shape)
    })
}

/// From now on single queries of a head read `entries` rows: the first `sinks`, the last `recent`, and those that these
/// channels, `count` int32 ascending, choose.
#[no_mangle]
pub extern "C" fn rows_foresee(
    rows: i32,
    kv_head: i32,
    channels: i32,
    count: i32,
    entries: i32,
    sinks: i32,
    recent: i32,
) -> i32 {
    run(|state| {
        let (layer, kv_head, count) = (state.layers.get(rows)?, size(kv_head)?, size(count)?);
        let reading = packed::Reading { entries: size(entries)?, sinks: size(sinks)?, recent: size(recent)? };
        state
            .buffers
            .lend([channels], |[channels]| layer.foresee(kv_head, input(&channels, count)?, reading).map(|()| 0))
    })
}

/// Bytes of what heads hold besides pages of whole rows: thin ones, and channels to foresee by.
#[no_mangle]
pub extern "C" fn rows_packed_bytes(rows: i32) -> i32 {
    run(|state| state.layers.get(rows).and_then(|layer| i32::try_from(layer.packed_bytes()).map_err(|_| Error::Memory)))
}

/// Copies one head's rows, `(length, dim)` each; or with `wanted` (`count` int32, −1 for none) only those.
#[no_mangle]
pub extern "C" fn rows_copy(rows: i32, kv_head: i32, wanted: i32, count: i32, keys: i32, values: i32) -> i32 {
    run(|state| {
        let (layer, kv_head) = (state.layers.get(rows)?, size(kv_head)?);
        let length = layer.rows.get(kv_head).ok_or(Error::Shape)?.length;
        state.buffers.lend([wanted, keys, values], |[wanted, mut keys, mut values]| {
            let copied = if wanted.is_some() { size(count)? } else { length };
            let floats = product(&[copied, layer.dim])?;
            let keys = keys.as_mut().ok_or(Error::Handle)?.view_mut(floats)?;
            let values = values.as_mut().ok_or(Error::Handle)?.view_mut(floats)?;
            match wanted {
                Some(wanted) => layer.copy_some(kv_head, wanted.view(copied)?, keys, values)?,
                None => layer.copy(kv_head, keys, values)?,
            }
            Ok(0)
        })
    })
}

/// Writes the ascending indices of the best `count` of `entries`. `second` (float32) and `protected` (bytes): −1 for none.
#[no_mangle]
pub extern "C" fn select_top(scores: i32, second: i32, protected: i32, entries: i32, count: i32, chosen: i32) -> i32 {
    run(|state| {
        let (entries, count) = (size(entries)?, size(count)?);
        if count > entries {
            return Err(Error::Shape);
        }
        state.buffers.lend([scores, second, protected, chosen], |[scores, second, protected, mut chosen]| {
            let second = if second.is_some() { input(&second, entries)? } else { &[] };
            let protected = if protected.is_some() { input(&protected, entries)? } else { &[] };
            let chosen = chosen.as_mut().ok_or(Error::Handle)?.view_mut(count)?;
            select::select(input(&scores, entries)?, second, protected, chosen).map(|()| 0)
        })
    })
}

/// Adds the bias, `(outputs)`, to rows of a target or, where none is given, leaves them.
fn start_rows(target: &mut dense::Target, count: usize, bias: &[f32]) {
    for t in 0..count {
        let at = target.offset + t * target.stride;
        for (place, b) in target.values[at..at + bias.len()].iter_mut().zip(bias) {
            *place = if target.add { *place + b } else { *b };
        }
    }
}

/// A matrix in a buffer, which may have more rows.
fn matrix<'a>(weights: &'a Lent, kind: i32, outputs: usize, inputs: usize) -> Result<dense::Matrix<'a>> {
    let kind = weights::Kind::from_number(kind).ok_or(Error::Shape)?;
    let row_bytes = kind.row_bytes(inputs).filter(|&bytes| bytes > 0).ok_or(Error::Shape)?;
    let buffer = weights.as_ref().ok_or(Error::Handle)?;
    let bytes: &[u8] = buffer.view(buffer.len() / row_bytes * row_bytes)?;
    if bytes.len() < product(&[outputs, row_bytes])? {
        return Err(Error::Buffer);
    }
    Ok(dense::Matrix { kind, bytes, outputs, inputs })
}

/// Has the rows of a whole buffer, `width` weights of a type in blocks each, as `dense_multiply` wants them: eight side by
/// side (`woven.rs`). Once: a second time makes nonsense of them. Returns 1 where products must be `exact`: some scale is
/// infinite or no number, and arithmetic in whole numbers would miss that; else 0.
#[no_mangle]
pub extern "C" fn dense_weave(weights: i32, kind: i32, width: i32) -> i32 {
    run(|state| {
        let (width, kind) = (size(width)?, weights::Kind::from_number(kind).ok_or(Error::Shape)?);
        let row_bytes = kind.row_bytes(width).filter(|&bytes| bytes > 0).ok_or(Error::Shape)?;
        let weights::Kind::Blocks(codec) = kind else { return Ok(0) };
        state.buffers.lend([weights], |[weights]| {
            let buffer = weights.ok_or(Error::Handle)?;
            let whole = buffer.len() / row_bytes * row_bytes;
            dense::weave(codec, width, buffer.view_mut(whole)?).map(i32::from)
        })
    })
}

/// Row `row` of a matrix as float32; `woven`: not 0 after `dense_weave`; `out`: `(width)`.
#[no_mangle]
pub extern "C" fn dense_row(weights: i32, kind: i32, width: i32, woven: i32, row: i32, out: i32) -> i32 {
    run(|state| {
        let (width, row) = (size(width)?, size(row)?);
        state.buffers.lend([weights, out], |[weights, mut out]| {
            let matrix = matrix(&weights, kind, row + 1, width)?;
            let out = out.as_mut().ok_or(Error::Handle)?.view_mut(width)?;
            dense::row(&matrix, row, woven != 0, out).map(|()| 0)
        })
    })
}

/// `target[t · stride + offset …] = weights · inputs[t] (+ bias)` for `count` rows, or added to what is there.
/// `weights`: `(outputs, inputs)` of the GGUF type with the number `kind` (`weights::Kind`); `arithmetic`: number of a
/// `dense::Arithmetic`; `bias`: `(outputs)` or −1.
#[no_mangle]
pub extern "C" fn dense_multiply(
    weights: i32,
    kind: i32,
    outputs: i32,
    width: i32,
    arithmetic: i32,
    inputs: i32,
    count: i32,
    bias: i32,
    target: i32,
    stride: i32,
    offset: i32,
    add: i32,
) -> i32 {
    run(|state| {
        let (outputs, width, count, stride, offset) =
            (size(outputs)?, size(width)?, size(count)?, size(stride)?, size(offset)?);
        let arithmetic = dense::Arithmetic::from_number(arithmetic).ok_or(Error::Shape)?;
        if outputs == 0 || width == 0 || count == 0 || offset + outputs > stride {
            return Err(Error::Shape);
        }
        state.buffers.lend([weights, inputs, bias, target], |[weights, inputs, bias, mut target]| {
            let matrix = matrix(&weights, kind, outputs, width)?;
            let values = target.as_mut().ok_or(Error::Handle)?.view_mut(product(&[count, stride])?)?;
            let mut target = dense::Target { values, stride, offset, add: add != 0 };
            let x = input(&inputs, product(&[count, width])?)?;
            if bias.is_some() {
                start_rows(&mut target, count, input(&bias, outputs)?);
                target.add = true;
            }
            dense::multiply(&matrix, x, count, arithmetic, &mut target).map(|()| 0)
        })
    })
}

/// `out = x / √(mean x² + epsilon) · gains`; `x`, `out`: `(count, width)`, `gains`: `(width)`.
#[no_mangle]
pub extern "C" fn dense_norm(x: i32, gains: i32, width: i32, count: i32, epsilon: f32, out: i32) -> i32 {
    run(|state| {
        let (width, count) = (size(width)?, size(count)?);
        if width == 0 {
            return Err(Error::Shape);
        }
        let length = product(&[count, width])?;
        state.buffers.lend([x, gains, out], |[x, gains, mut out]| {
            let out = out.as_mut().ok_or(Error::Handle)?.view_mut(length)?;
            dense::rms_norm(input(&x, length)?, input(&gains, width)?, epsilon, out);
            Ok(0)
        })
    })
}

/// The same of `heads` runs of `width` columns from `first` on of rows of `stride` numbers, the rest copied; `x`, `out`:
/// `(count, stride)`.
#[no_mangle]
pub extern "C" fn dense_head_norm(
    x: i32,
    gains: i32,
    stride: i32,
    first: i32,
    heads: i32,
    width: i32,
    count: i32,
    epsilon: f32,
    out: i32,
) -> i32 {
    run(|state| {
        let (stride, first, heads) = (size(stride)?, size(first)?, size(heads)?);
        let (width, count) = (size(width)?, size(count)?);
        let end = product(&[heads, width])?.checked_add(first).ok_or(Error::Shape)?;
        if width == 0 || stride == 0 || end > stride {
            return Err(Error::Shape);
        }
        let length = product(&[count, stride])?;
        state.buffers.lend([x, gains, out], |[x, gains, mut out]| {
            let out = out.as_mut().ok_or(Error::Handle)?.view_mut(length)?;
            dense::head_norm(input(&x, length)?, input(&gains, width)?, stride, first, heads, epsilon, out);
            Ok(0)
        })
    })
}

/// `out = a + b`, `length` floats.
#[no_mangle]
pub extern "C" fn dense_add(a: i32, b: i32, length: i32, out: i32) -> i32 {
    run(|state| {
        let length = size(length)?;
        state.buffers.lend([a, b, out], |[a, b, mut out]| {
            dense::add(input(&a, length)?, input(&b, length)?, out.as_mut().ok_or(Error::Handle)?.view_mut(length)?);
            Ok(0)
        })
    })
}

/// `out = activate(gate) · up`; `activation`: 0 SiLU, 1 GELU's tanh form, 2 gpt-oss's (`dense::limited_swiglu`); `gate_up`:
/// `(count, 2, width)`, `out`: `(count, width)`.
#[no_mangle]
pub extern "C" fn dense_gate(gate_up: i32, activation: i32, width: i32, count: i32, out: i32) -> i32 {
    run(|state| {
        let (width, count) = (size(width)?, size(count)?);
        if width == 0 {
            return Err(Error::Shape);
        }
        let length = product(&[count, width])?;
        state.buffers.lend([gate_up, out], |[gate_up, mut out]| {
            let out = out.as_mut().ok_or(Error::Handle)?.view_mut(length)?;
            let activate = match activation {
                0 => dense::swiglu,
                1 => dense::geglu,
                2 => dense::limited_swiglu,
                _ => return Err(Error::Shape),
            };
            activate(input(&gate_up, product(&[2, length])?)?, width, out);
            Ok(0)
        })
    })
}

/// `out = weights · x / √(mean x² + epsilon) + bias`; `weights`: `(heads, width)`, `bias`: `(heads)`, `x`: `(count, width)`,
/// `out`: `(count, heads)`.
#[no_mangle]
pub extern "C" fn gate_scores(
    weights: i32,
    bias: i32,
    heads: i32,
    width: i32,
    epsilon: f32,
    x: i32,
    count: i32,
    out: i32,
) -> i32 {
    run(|state| {
        let (heads, width, count) = (size(heads)?, size(width)?, size(count)?);
        if heads == 0 || width == 0 {
            return Err(Error::Shape);
        }
        let (weighed, length, scores) =
            (product(&[heads, width])?, product(&[count, width])?, product(&[count, heads])?);
        state.buffers.lend([weights, bias, x, out], |[weights, bias, x, mut out]| {
            let out = out.as_mut().ok_or(Error::Handle)?.view_mut(scores)?;
            let gate = gate::Gate { width, weights: input(&weights, weighed)?, bias: input(&bias, heads)?, epsilon };
            gate.score(input(&x, length)?, out).map(|()| 0)
        })
    })
}

/// Solves `(A + ridge · I) X = B`; see [`solve::solve`]. `matrix`: `(n, n)` and `right`: `(n, width)`, both float64; X
/// takes the place of B, and what is in `matrix` afterwards is nobody's, also where this is refused.
#[no_mangle]
pub extern "C" fn solve_symmetric(matrix: i32, n: i32, ridge: f64, right: i32, width: i32) -> i32 {
    run(|state| {
        let (n, width) = (size(n)?, size(width)?);
        if n == 0 {
            return Err(Error::Shape);
        }
        let (square, length) = (product(&[n, n])?, product(&[n, width])?);
        state.buffers.lend([matrix, right], |[mut matrix, mut right]| {
            let matrix = matrix.as_mut().ok_or(Error::Handle)?.view_mut(square)?;
            let right = right.as_mut().ok_or(Error::Handle)?.view_mut(length)?;
            solve::solve(matrix, n, ridge, right).map(|()| 0)
        })
    })
}

/// See [`solve::descend`]; `matrix`: `(n, n)`, `right` and `x`: `(n)`, `work`: `(2, n)`, all float64.
#[no_mangle]
pub extern "C" fn descend(matrix: i32, n: i32, right: i32, x: i32, work: i32, least: f64, steps: i32) -> i32 {
    run(|state| {
        let (n, steps) = (size(n)?, size(steps)?);
        if n == 0 {
            return Err(Error::Shape);
        }
        let square = product(&[n, n])?;
        state.buffers.lend([matrix, right, x, work], |[matrix, right, mut x, mut work]| {
            let x = x.as_mut().ok_or(Error::Handle)?.view_mut(n)?;
            let work = work.as_mut().ok_or(Error::Handle)?.view_mut(2 * n)?;
            solve::descend(input(&matrix, square)?, input(&right, n)?, x, work, least, steps);
            Ok(0)
        })
    })
}
