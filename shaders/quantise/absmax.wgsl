// The largest magnitude of a tensor (ops/absmax.rs). Grid: one workgroup.
#import step
#import bounds

const THREADS: u32 = 256u;

struct Params {
    counted_by: u32,
    rows: u32,
    per_row: u32, // elements of a leading row
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<f32>; // [rows, per_row]
#bind var<storage, read_write> y: array<f32>; // [1]

var<workgroup> max_orders: array<i32, THREADS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(local_invocation_index) id: u32) {
    let n = counted(params.counted_by, params.rows) * params.per_row;
    var max_order = 0;
    for (var i = id; i < n; i += THREADS) { max_order = max(max_order, magnitude(x[i])); }
    max_orders[id] = max_order;
    workgroupBarrier();
    if id == 0u {
        for (var i = 1u; i < THREADS; i++) { max_order = max(max_order, max_orders[i]); }
        y[0] = of_order(max_order);
    }
}
