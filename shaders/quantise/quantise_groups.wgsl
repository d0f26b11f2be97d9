// RMSNorm, if there is one, and absmax quantisation of each 32 columns or of the whole row (ops/quantise_groups.rs).
// Grid: a workgroup per row. 32 columns belong to one thread. With WHOLE_ROW, a run of threads with 4 columns each is
// whole groups, of up to 256 columns; a group of more is the row. Source: Ma et al. 2024 (BitNet b1.58), section 2.
#import reduce

struct Params {
    width: u32,
    group: u32,
    groups: u32,
    eps: f32,
    rms_floor: f32,
    in_bound: f32,
    out_bound: f32,
    max_code: f32,
    act_bound: f32,
    act_floor: f32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<vec4<f32>>; // [rows, width / 4]
#ifdef NORM
#bind var<storage, read> w: array<vec4<f32>>; // [width / 4]
#endif
#bind var<storage, read_write> codes: array<u32>; // [rows, width / 4 padded to 8]
#bind var<storage, read_write> act_scale_and_sum: array<vec2<f32>>; // [rows, groups]: factor, sum of codes

const MAX_GROUP: u32 = 256u; // columns of a group that is not a row

var<workgroup> sums: array<f32, WG>;

// Elements 4i.. of the row that begins at x0, under the norm.
fn value(x0: u32, i: u32, rms: f32) -> vec4<f32> {
    let v = x[x0 + i];
#ifdef NORM
    let normed = w[i] * bounded4(bounded4(v, params.in_bound) / rms, params.out_bound);
    return bounded4(normed, params.act_bound);
#else
    return bounded4(v, params.act_bound);
#endif
}

fn run(lane: Lane, group: vec3<u32>) {
    let row = group.x;
    let vectors = params.width / 4u;
    let x0 = row * vectors;
    var rms = 1.0;
#ifdef NORM
    var squares = 0.0;
    for (var i = lane.id; i < vectors; i += WG) {
        let v = bounded4(x[x0 + i], params.in_bound);
        squares += dot(v, v);
    }
    rms = sqrt(at_least(workgroup_sum(lane, squares) / f32(params.width), params.rms_floor) + params.eps);
#endif
#ifdef WHOLE_ROW
    of_row(lane, row, x0, rms);
#else
    for (var g = lane.id; g < params.groups; g += WG) { of_columns(row, x0, g, rms); }
#endif
}

#ifdef WHOLE_ROW
fn of_row(lane: Lane, row: u32, x0: u32, rms: f32) {
    let vectors = params.width / 4u;
    var most = magnitude(params.act_floor);
    for (var i = lane.id; i < vectors; i += WG) { most = max(most, largest(value(x0, i, rms))); }
    let top = workgroup_max(lane, most);
    let k = params.max_code / of_order(top);

    let words = (params.width + 31u) / 32u * 8u;
    let span = min(params.group, MAX_GROUP) / 4u; // lanes of a group
    let begin = lane.id / span * span;
    var row_sum = 0.0;
    for (var first = 0u; first < words; first += WG) {
        let i = first + lane.id;
        var v = vec4<f32>();
        if i < vectors { v = value(x0, i, rms); }
        let code = codes_of(v * k, params.max_code);
        if i < words { codes[row * words + i] = word_of(code); }
        let sum = code.x + code.y + code.z + code.w;
        if params.group <= MAX_GROUP {
            workgroupBarrier();
            sums[lane.id] = sum;
            workgroupBarrier();
            if lane.id == begin && i < vectors {
                var total = 0.0;
                for (var l = begin; l < begin + span; l++) { total += sums[l]; }
                act_scale_and_sum[row * params.groups + i / span] = vec2<f32>(1.0 / k, total);
            }
        }
        row_sum += sum;
    }
    if params.group > MAX_GROUP {
        let total = workgroup_sum(lane, row_sum);
        if lane.id == 0u { act_scale_and_sum[row] = vec2<f32>(of_order(top) / params.max_code, total); }
    }
}
#else
const VECTORS: u32 = 8u; // of 32 columns

const LARGEST_CODES: u32 = 3u;
const MARGIN: f32 = 0.01;

// Σ (vk − code)² of 32 columns.
fn squared_error(held: ptr<function, array<vec4<f32>, VECTORS>>, k: f32) -> f32 {
    var sum = 0.0;
    for (var v = 0u; v < VECTORS; v++) {
        let scaled = (*held)[v] * k;
        let error = scaled - codes_of(scaled, params.max_code);
        sum += dot(error, error);
    }
    return sum;
}

// The largest magnitude becomes the largest code, or one of those below it that gives a smaller error.
fn best_k(held: ptr<function, array<vec4<f32>, VECTORS>>, top: f32) -> f32 {
    var best = params.max_code / top;
    var least = squared_error(held, best);
    for (var below = 1u; below < LARGEST_CODES; below++) {
        let most = params.max_code - f32(below);
        let step = params.max_code / most;
        let error = squared_error(held, most / top) * step * step;
        if error < least - MARGIN {
            best = most / top;
            least = error;
        }
    }
    return best;
}

// Group `g` of 32 columns.
fn of_columns(row: u32, x0: u32, g: u32, rms: f32) {
    let end = params.width / 4u;
    var held = array<vec4<f32>, VECTORS>(); // all are loaded before one is used
    for (var v = 0u; v < VECTORS; v++) {
        let i = VECTORS * g + v;
        held[v] = select(vec4<f32>(), value(x0, min(i, end - 1u), rms), i < end);
    }
    var top = magnitude(params.act_floor);
    for (var v = 0u; v < VECTORS; v++) { top = max(top, largest(held[v])); }
    let k = best_k(&held, of_order(top));
    var total = 0.0;
    var by_value = 0.0;
    var squares = 0.0;
    for (var v = 0u; v < VECTORS; v++) {
        let scaled = held[v] * k;
        let code = codes_of(scaled, params.max_code);
        codes[(row * params.groups + g) * VECTORS + v] = word_of(code);
        total += code.x + code.y + code.z + code.w;
        by_value += dot(scaled, code);
        squares += dot(code, code);
    }
    // The factor of the least squared error for these codes.
    let scale = select(1.0, by_value / max(squares, 1.0), squares > 0.0) / k;
    act_scale_and_sum[row * params.groups + g] = vec2<f32>(scale, total);
}
#endif
