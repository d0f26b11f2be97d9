// What 8 lanes of a subgroup pass on to each other. Only where subgroups have at least 8 lanes.

#ifdef SHUFFLES
struct Lane {
    id: u32,
    in_subgroup: u32,
}

fn max_of_lanes(lane: Lane, v: f32) -> f32 {
    var most = max(v, subgroupShuffle(v, lane.in_subgroup ^ 4u));
    most = max(most, subgroupShuffle(most, lane.in_subgroup ^ 2u));
    return max(most, subgroupShuffle(most, lane.in_subgroup ^ 1u));
}

fn sum_of_lanes(lane: Lane, v: f32) -> f32 {
    var sum = v + subgroupShuffle(v, lane.in_subgroup ^ 4u);
    sum += subgroupShuffle(sum, lane.in_subgroup ^ 2u);
    return sum + subgroupShuffle(sum, lane.in_subgroup ^ 1u);
}
#endif
