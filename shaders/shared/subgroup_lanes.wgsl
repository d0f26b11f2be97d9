// Shuffles among 8 lanes of a subgroup. Only where subgroups have at least 8 lanes.

#ifdef SOFTWARE_SUBGROUPS
struct Lane {
    id: u32,
    in_subgroup: u32,
}

fn max_of_lanes(lane: Lane, v: f32) -> f32 {
    var max_value = max(v, subgroupShuffle(v, lane.in_subgroup ^ 4u));
    max_value = max(max_value, subgroupShuffle(max_value, lane.in_subgroup ^ 2u));
    return max(max_value, subgroupShuffle(max_value, lane.in_subgroup ^ 1u));
}

fn sum_of_lanes(lane: Lane, v: f32) -> f32 {
    var sum = v + subgroupShuffle(v, lane.in_subgroup ^ 4u);
    sum += subgroupShuffle(sum, lane.in_subgroup ^ 2u);
    return sum + subgroupShuffle(sum, lane.in_subgroup ^ 1u);
}
#endif
