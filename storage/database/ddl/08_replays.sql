CREATE VIEW v_replays AS
WITH compared AS (
    SELECT
        p.run,
        p.source AS source_run,
        c.run = p.run AS replayed,
        c.iteration,
        bool_or(c.run = p.source) OVER (PARTITION BY p.run, c.iteration) AS paired,
        c.* EXCLUDE (run, iteration)
    FROM runs AS p
    JOIN v_token_credit AS c
        ON c.run IN (p.run, p.source)
        AND c.iteration BETWEEN p.first_iteration AND p.first_iteration + p.num_iterations - 1
    WHERE p.kind = 'replay'
    -- A replay that is not done yet is compared as far as it is.
    QUALIFY bool_or(c.run = p.run) OVER (PARTITION BY p.run, c.iteration)
),

figures AS (
    SELECT
        run,
        source_run,
        replayed,
        paired,
        list(DISTINCT iteration ORDER BY iteration) AS iterations,
        unnest([
            {'place': 1, 'figure': 'mean JSD', 'value': avg(jsd) FILTER (in_query)},
            {
                'place': 2,
                'figure': 'JSD, queries of CORRECT rollouts',
                'value': avg(jsd) FILTER (in_query AND outcome = 'CORRECT')
            },
            {
                'place': 3,
                'figure': 'JSD, queries of INCORRECT rollouts',
                'value': avg(jsd) FILTER (in_query AND outcome = 'INCORRECT')
            },
            {
                'place': 4,
                'figure': 'teacher probability, queries of CORRECT rollouts',
                'value': avg(exp(teacher_logprob)) FILTER (in_query AND outcome = 'CORRECT')
            },
            {
                'place': 5,
                'figure': 'teacher probability, queries of INCORRECT rollouts',
                'value': avg(exp(teacher_logprob)) FILTER (in_query AND outcome = 'INCORRECT')
            },
            {
                'place': 6,
                'figure': 'student probability, queries of CORRECT rollouts',
                'value': avg(exp(student_logprob)) FILTER (in_query AND outcome = 'CORRECT')
            },
            {
                'place': 7,
                'figure': 'student probability, queries of INCORRECT rollouts',
                'value': avg(exp(student_logprob)) FILTER (in_query AND outcome = 'INCORRECT')
            },
            {
                'place': 8,
                'figure': 'log-ratio, queries of CORRECT rollouts',
                'value': avg(teacher_logprob - student_logprob) FILTER (in_query AND outcome = 'CORRECT')
            },
            {
                'place': 9,
                'figure': 'log-ratio, queries of INCORRECT rollouts',
                'value': avg(teacher_logprob - student_logprob) FILTER (in_query AND outcome = 'INCORRECT')
            },
            {
                'place': 10,
                'figure': 'entropy gap, student - teacher',
                'value': avg(student_entropy - teacher_entropy) FILTER (in_query)
            },
            {
                'place': 11,
                'figure': 'L_SD, as each run measures it',
                'value': sum(divergence / num_rollout_tokens) / sum(1 / num_rollout_tokens)
            },
            {'place': 12, 'figure': 'query tokens', 'value': count(*) FILTER (in_query)},
            {'place': 13, 'figure': 'distilled tokens', 'value': count(*)}
        ], recursive := true)
    FROM compared
    GROUP BY run, source_run, replayed, paired
)

SELECT
    run,
    source_run,
    paired,
    any_value(iterations) FILTER (replayed) AS iterations,
    place,
    figure,
    max(value) FILTER (NOT replayed) AS source,
    max(value) FILTER (replayed) AS replay
FROM figures
GROUP BY run, source_run, paired, place, figure;
COMMENT ON VIEW v_replays IS 'Replays beside the runs that they take their rollouts from, one row a figure; means are over query tokens.';
COMMENT ON COLUMN v_replays.run IS 'Name of the replay.';
COMMENT ON COLUMN v_replays.source_run IS 'Name of the source, the run that sampled.';
COMMENT ON COLUMN v_replays.paired IS 'True for the iterations in which the source has a teacher too, false for those in which it has none.';
COMMENT ON COLUMN v_replays.iterations IS 'The iterations that the figure is over.';
COMMENT ON COLUMN v_replays.place IS 'Order of the figures.';
COMMENT ON COLUMN v_replays.figure IS
    'JSD, log-ratio (teacher minus student log-probability), entropy gap: nats. Probability: of the token that the sibling sampled, exp of its log-probability, the teacher''s under the block. L_SD: mean over rollouts of the mean divergence over their distilled tokens. CORRECT and INCORRECT are outcomes, whatever labels the block shows.';
COMMENT ON COLUMN v_replays.source IS 'The figure in the source; empty where it has no teacher.';
COMMENT ON COLUMN v_replays.replay IS 'The figure in the replay.';
