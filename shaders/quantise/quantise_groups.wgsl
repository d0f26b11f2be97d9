// A gated activation or an RMSNorm, if there is one, and absmax quantisation of each 32 columns or of the whole row
// (ops/quantise_groups.rs).
// Grid: a workgroup per row. 32 columns belong to one thread. With WHOLE_ROW, a run of threads with 4 columns each is
// whole groups, of up to 256 columns; a group of more is the row. Source: Ma et al. 2024 (BitNet b1.58), section 2.
#import reduce
#import group_codes

struct Params {
    width: u32, // of the codes
    group: u32,
    groups: u32,
    gate_bound: f32,
    product_bound: f32,
    relu2: u32,
    eps: f32,
    rms_floor: f32,
    in_bound: f32,
    out_bound: f32,
    max_code: f32,
    act_bound: f32,
    act_floor: f32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<vec4<f32>>; // [rows, width / 4], with GATED [rows, 2, width / 4]: gate, up
#ifdef NORM
#bind var<storage, read> w: array<vec4<f32>>; // [width / 4]
#endif
#ifdef WHOLE_ROW
#bind var<storage, read_write> codes: array<u32>; // [rows, width / 4 padded to 8]
#else
#bind var<storage, read_write> codes: array<vec4<u32>>; // [rows, width / 16 padded to 2]
#endif
#bind var<storage, read_write> act_scale_and_sum: array<vec2<f32>>; // [rows, groups]: factor, sum of codes

const MAX_GROUP: u32 = 256u; // columns of a group that is not a row

var<workgroup> sums: array<f32, WG>;

fn run(lane: Lane, group: vec3<u32>) {
    let row = group.x;
    let vectors = params.width / 4u;
#ifdef GATED
    let x0 = 2u * row * vectors;
#else
    let x0 = row * vectors;
#endif
    var rms = 1.0;
#ifdef NORM
    var squares = 0.0;
    for (var i = lane.id; i < vectors; i += WG) {
        squares += square(element(x0, i));
    }
    rms = rms_of(workgroup_sum(lane, squares));
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
// Group `g` of 32 columns.
fn of_columns(row: u32, x0: u32, g: u32, rms: f32) {
    hold(x0, g, rms);
    let made = codes_of_held(best_k());
    codes[2u * (row * params.groups + g)] = made.first;
    codes[2u * (row * params.groups + g) + 1u] = made.second;
    act_scale_and_sum[row * params.groups + g] = made.scale_and_sum;
}
#endif
