// y = x · wᵀ for many rows where lanes pass words on (ops/matmul.rs): a lane keeps 4 outputs of 8 rows, and loads one of
// 8 neighbouring elements of each row. Grid: x = blocks of 128 outputs, y = blocks of 8 rows. Workgroup: 32 lanes.
#bind var<storage, read> x: array<f32>; // [rows · per_lead, d_in]
#import dense

const ROWS: u32 = 8u;
const LANES: u32 = 32u;

var<private> sums: array<vec4<f32>, ROWS>; // over the 4 outputs

struct Lane {
    @builtin(local_invocation_id) at: vec3<u32>,
    @builtin(subgroup_invocation_id) in_subgroup: u32,
}

// Adds columns i..i + 4; lane `lane0` + j holds element i + j of each row in `mine`.
fn add4(outs: vec4<u32>, i: u32, mine: array<f32, ROWS>, lane0: u32) {
    let a = weight4(outs.x + i);
    let b = weight4(outs.y + i);
    let c = weight4(outs.z + i);
    let d = weight4(outs.w + i);
    let w = array<vec4<f32>, 4>(
        vec4<f32>(a.x, b.x, c.x, d.x), vec4<f32>(a.y, b.y, c.y, d.y),
        vec4<f32>(a.z, b.z, c.z, d.z), vec4<f32>(a.w, b.w, c.w, d.w));
    for (var r = 0u; r < ROWS; r++) {
        for (var j = 0u; j < 4u; j++) {
            sums[r] = fma(vec4<f32>(subgroupShuffle(mine[r], lane0 + j)), w[j], sums[r]);
        }
    }
}

@compute @workgroup_size(LANES)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>) {
    let out0 = (group.x * LANES + lane.at.x) * 4u;
    let row0 = group.y * ROWS;
    let rows = led(params.lead, params.rows) * params.per_lead;
    // Lanes and rows behind the last ones compute those again and write nothing.
    let outs = min(vec4<u32>(out0) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(params.d_out - 1u)) * params.d_in;
    var x0: array<u32, ROWS>;
    for (var r = 0u; r < ROWS; r++) { x0[r] = min(row0 + r, rows - 1u) * params.d_in + (lane.in_subgroup & 7u); }
    var i = 0u;
    for (; i + 8u <= params.d_in; i += 8u) {
        var mine: array<f32, ROWS>;
        for (var r = 0u; r < ROWS; r++) { mine[r] = x[x0[r] + i]; }
        add4(outs, i, mine, 0u);
        add4(outs, i + 4u, mine, 4u);
    }
    if i < params.d_in {
        var mine: array<f32, ROWS>;
        for (var r = 0u; r < ROWS; r++) { mine[r] = x[x0[r] + i]; }
        add4(outs, i, mine, 0u);
    }
    for (var r = 0u; r < ROWS; r++) {
        for (var o = 0u; o < 4u; o++) {
            if row0 + r < rows && out0 + o < params.d_out { store(row0 + r, out0 + o, sums[r][o]); }
        }
    }
}
