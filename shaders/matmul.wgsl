// y = x · wᵀ for many rows (ops/matmul.rs): each thread keeps 4 rows × 4 outputs in registers.
// Grid: x = blocks of 32 outputs, y = blocks of 32 rows; workgroup 8 × 8.
#import dense

const N: u32 = 4u;

@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let out0 = id.x * N;
    let row0 = id.y * N;
    let rows = led(params.lead, params.rows) * params.per_lead;
    if out0 >= params.d_out || row0 >= rows { return; }
    var sum: array<vec4<f32>, N>; // by row, over outputs
    for (var i = 0u; i < params.d_in; i += 4u) {
        var ws: array<vec4<f32>, N>;
        for (var o = 0u; o < N; o++) { ws[o] = weight4(min(out0 + o, params.d_out - 1u) * params.d_in + i); }
        for (var r = 0u; r < N; r++) {
            let v = x[(min(row0 + r, rows - 1u) * params.d_in + i) / 4u];
            sum[r] += vec4<f32>(dot(v, ws[0]), dot(v, ws[1]), dot(v, ws[2]), dot(v, ws[3]));
        }
    }
    for (var r = 0u; r < N; r++) {
        for (var o = 0u; o < N; o++) {
            let out = out0 + o;
            if row0 + r < rows && out < params.d_out {
                let at = (row0 + r) * params.width + params.col0 + out;
                var v = sum[r][o];
#ifdef BIAS
                v += bias[out];
#endif
#ifdef RESIDUAL
                v += residual[at];
#endif
                y[at] = v;
            }
        }
    }
}
