// Sums and maxima over a workgroup of WG threads, every thread gets the result.
// One pass over subgroups where there are any, else two barriers; no assumption about the subgroup size.
// Maxima are of integers in the order of floats (shared/bounds.wgsl), in which NaN is above all.
// A shader that imports this writes `fn run(lane: Lane, group: vec3<u32>)` for its entry point.
#import bounds

#ifdef WG256
const WG: u32 = 256u;
#else
const WG: u32 = 64u;
#endif
const FEW: u32 = 8u;

struct Lane {
    id: u32,
#ifdef SUBGROUPS
    in_subgroup: u32,
    subgroup: u32,
    n_subgroups: u32,
#endif
}

// The entry point. Built-ins of subgroups are parameters of their own: HLSL has no semantic for them inside a struct.
@compute @workgroup_size(WG)
fn main(
    @builtin(local_invocation_index) id: u32,
#ifdef SUBGROUPS
    @builtin(subgroup_invocation_id) in_subgroup: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) n_subgroups: u32,
#endif
    @builtin(workgroup_id) group: vec3<u32>,
) {
#ifdef SUBGROUPS
    run(Lane(id, in_subgroup, subgroup, n_subgroups), group);
#else
    run(Lane(id), group);
#endif
}

var<workgroup> reduce_partial: array<f32, WG>;
var<workgroup> reduce_few: array<f32, FEW>;
var<workgroup> reduce_orders: array<i32, WG>;
var<workgroup> reduce_few_orders: array<i32, FEW>;

fn workgroup_sum(lane: Lane, v: f32) -> f32 {
    workgroupBarrier();
#ifdef SUBGROUPS
    let mine = subgroupAdd(v);
    if lane.in_subgroup == 0u { reduce_partial[lane.subgroup] = mine; }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < lane.n_subgroups; i++) { sum += reduce_partial[i]; }
    return sum;
#else
    reduce_partial[lane.id] = v;
    workgroupBarrier();
    if lane.id < FEW {
        var few = 0.0;
        for (var i = lane.id; i < WG; i += FEW) { few += reduce_partial[i]; }
        reduce_few[lane.id] = few;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < FEW; i++) { sum += reduce_few[i]; }
    return sum;
#endif
}

fn workgroup_max(lane: Lane, v: i32) -> i32 {
    workgroupBarrier();
#ifdef SUBGROUPS
    let mine = subgroupMax(v);
    if lane.in_subgroup == 0u { reduce_orders[lane.subgroup] = mine; }
    workgroupBarrier();
    var max_order = reduce_orders[0];
    for (var i = 1u; i < lane.n_subgroups; i++) { max_order = max(max_order, reduce_orders[i]); }
    return max_order;
#else
    reduce_orders[lane.id] = v;
    workgroupBarrier();
    if lane.id < FEW {
        var few = reduce_orders[lane.id];
        for (var i = lane.id; i < WG; i += FEW) { few = max(few, reduce_orders[i]); }
        reduce_few_orders[lane.id] = few;
    }
    workgroupBarrier();
    var max_order = reduce_few_orders[0];
    for (var i = 1u; i < FEW; i++) { max_order = max(max_order, reduce_few_orders[i]); }
    return max_order;
#endif
}
