// y = x · wᵀ for many rows with software subgroups (ops/matmul.rs): a lane keeps 4 outputs of 8 rows, and loads 4 of
// 32 neighbouring elements of each row. Grid: x = blocks of 8 rows, so that the
// weights stay in the cache for the next one, y = blocks of 128 outputs. Workgroup: 32 lanes.
#bind var<storage, read> x: array<vec4<f32>>; // [rows · per_row, d_in / 4]
#ifdef INT8
#bind var<storage, read> w: array<vec2<u32>>; // [d_out, d_in / 8], then scales [d_out / 2]
#else
#ifdef F16
#bind var<storage, read> w: array<vec4<u32>>; // [d_out, d_in / 8]
#else
#bind var<storage, read> w: array<vec4<f32>>; // [d_out, d_in / 4]
#endif
#endif
#import matmul
#import subgroup_lanes
#import vectors

const ROWS: u32 = 8u;
const WORKERS: u32 = 32u;
const DEPTH: u32 = 32u;

var<private> sums: array<vec4<f32>, ROWS>; // over the 4 outputs
var<private> mine: array<vec4<f32>, ROWS>; // this lane's elements of each row

struct Eight {
    low: vec4<f32>,
    high: vec4<f32>,
}

// Eight neighbouring elements of w, without their row's scale.
fn weight8(at: u32) -> Eight {
#ifdef INT8
    let all = w[at / 8u];
    return Eight(vec4<f32>(unpack4xI8(all.x)), vec4<f32>(unpack4xI8(all.y)));
#else
#ifdef F16
    let all = w[at / 8u];
    return Eight(
        vec4<f32>(unpack2x16float(all.x), unpack2x16float(all.y)),
        vec4<f32>(unpack2x16float(all.z), unpack2x16float(all.w)));
#else
    return Eight(w[at / 4u], w[at / 4u + 1u]);
#endif
#endif
}

#ifdef INT8
// The scale of row `out` of w.
fn scale_of(out: u32) -> f32 {
    return bitcast<f32>(w[params.d_out * params.d_in / 8u + out / 2u][out % 2u]);
}
#endif

// Adds four columns to row r; lane `lane` holds its elements of them, and a to d are the outputs'.
fn add(r: u32, lane: u32, a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>) {
    let v = subgroupShuffle(mine[r], lane);
    var sum = fma(vec4<f32>(v.x), vec4<f32>(a.x, b.x, c.x, d.x), sums[r]);
    sum = fma(vec4<f32>(v.y), vec4<f32>(a.y, b.y, c.y, d.y), sum);
    sum = fma(vec4<f32>(v.z), vec4<f32>(a.z, b.z, c.z, d.z), sum);
    sums[r] = fma(vec4<f32>(v.w), vec4<f32>(a.w, b.w, c.w, d.w), sum);
}

// Adds columns i..i + 8, which lanes `lane` and the next one hold.
fn add8(outs: vec4<u32>, i: u32, lane: u32) {
    let a = weight8(outs.x + i);
    let b = weight8(outs.y + i);
    let c = weight8(outs.z + i);
    let d = weight8(outs.w + i);
    for (var r = 0u; r < ROWS; r++) { add(r, lane, a.low, b.low, c.low, d.low); }
    for (var r = 0u; r < ROWS; r++) { add(r, lane + 1u, a.high, b.high, c.high, d.high); }
}

@compute @workgroup_size(WORKERS)
fn main(
    @builtin(local_invocation_index) id: u32,
    @builtin(subgroup_invocation_id) in_subgroup: u32,
    @builtin(workgroup_id) group: vec3<u32>,
) {
    let lane = Lane(id, in_subgroup);
    let out0 = (group.y * WORKERS + lane.id) * 4u;
    let row0 = group.x * ROWS;
    let rows = counted(params.counted_by, params.rows) * params.per_row;
    // Lanes and rows behind the last ones compute those again and write nothing.
    let outs = min(vec4<u32>(out0) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(params.d_out - 1u)) * params.d_in;
    let vec4s = params.d_in / 4u;
    for (var i0 = 0u; i0 < params.d_in; i0 += DEPTH) {
        let quad = min(i0 / 4u + (lane.in_subgroup & 7u), vec4s - 1u);
        for (var r = 0u; r < ROWS; r++) { mine[r] = x[min(row0 + r, rows - 1u) * vec4s + quad]; }
        let end = min(DEPTH, params.d_in - i0);
        for (var i = 0u; i < end; i += 8u) { add8(outs, i0 + i, i / 4u); }
    }
    for (var r = 0u; r < ROWS; r++) {
        for (var o = 0u; o < 4u; o++) {
            if row0 + r < rows && out0 + o < params.d_out { store(row0 + r, out0 + o, component(sums[r], o)); }
        }
    }
}
