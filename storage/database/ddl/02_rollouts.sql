CREATE TABLE questions (
    run VARCHAR NOT NULL,
    question_key VARCHAR NOT NULL,
    dataset VARCHAR NOT NULL,
    question_id VARCHAR NOT NULL,
    split VARCHAR NOT NULL,
    question VARCHAR NOT NULL,
    golden_answers VARCHAR[] NOT NULL,
    category VARCHAR NOT NULL,
    PRIMARY KEY (run, question_key)
);
COMMENT ON TABLE questions IS 'One row a question that a run sampled from.';
COMMENT ON COLUMN questions.question_key IS 'dataset:id.';
COMMENT ON COLUMN questions.question_id IS 'Id within the data set.';

CREATE TABLE groups (
    run VARCHAR NOT NULL,
    iteration INTEGER NOT NULL,
    group_id VARCHAR NOT NULL,
    policy_version INTEGER NOT NULL,
    question_key VARCHAR NOT NULL,
    prompt_token_ids INTEGER[] NOT NULL,
    block_offset INTEGER NOT NULL,
    num_rollouts INTEGER NOT NULL,
    reward_mean DOUBLE NOT NULL,
    reward_std DOUBLE NOT NULL,
    zero_advantage BOOLEAN NOT NULL,
    filtered BOOLEAN NOT NULL,
    replacement INTEGER NOT NULL,
    num_distinct_queries INTEGER NOT NULL,
    PRIMARY KEY (run, iteration, group_id)
);
COMMENT ON TABLE groups IS 'One row a group: the sibling rollouts of one question in one iteration.';
COMMENT ON COLUMN groups.group_id IS 'Id of the group.';
COMMENT ON COLUMN groups.question_key IS 'The question, as in questions.';
COMMENT ON COLUMN groups.num_rollouts IS 'Siblings.';
COMMENT ON COLUMN groups.reward_mean IS 'Mean raw reward of the siblings.';
COMMENT ON COLUMN groups.reward_std IS 'Unbiased standard deviation of their rewards; 0 for a single rollout.';
COMMENT ON COLUMN groups.zero_advantage IS 'True when every sibling''s advantage is 0: the group teaches GRPO nothing.';
COMMENT ON COLUMN groups.filtered IS 'True when grpo.filter leaves the group out of the policy loss and its KL.';
COMMENT ON COLUMN groups.num_distinct_queries IS 'Different query texts among the siblings.';

CREATE TABLE rollouts (
    run VARCHAR NOT NULL,
    iteration INTEGER NOT NULL,
    rollout_id VARCHAR NOT NULL,
    group_id VARCHAR NOT NULL,
    question_key VARCHAR NOT NULL,
    rollout_index INTEGER NOT NULL,
    answer VARCHAR,
    queries VARCHAR[] NOT NULL,
    num_turns INTEGER NOT NULL,
    num_malformed INTEGER NOT NULL,
    stop_reason VARCHAR NOT NULL,
    num_tokens INTEGER NOT NULL,
    num_completion_tokens INTEGER NOT NULL,
    num_query_tokens INTEGER NOT NULL,
    em DOUBLE NOT NULL,
    f1 DOUBLE NOT NULL,
    valid_format BOOLEAN NOT NULL,
    num_hits INTEGER NOT NULL,
    num_golden_hits INTEGER NOT NULL,
    reward DOUBLE NOT NULL,
    advantage DOUBLE NOT NULL,
    outcome VARCHAR NOT NULL,
    PRIMARY KEY (run, iteration, rollout_id)
);
COMMENT ON TABLE rollouts IS 'One row a rollout: one whole attempt at a question, with its score.';
COMMENT ON COLUMN rollouts.question_key IS 'Its question.';
COMMENT ON COLUMN rollouts.rollout_index IS 'Place among its siblings, in sampling order, from 0.';
COMMENT ON COLUMN rollouts.answer IS 'Final answer; empty when it ended without one.';
COMMENT ON COLUMN rollouts.queries IS 'What it searched for, in order.';
COMMENT ON COLUMN rollouts.num_turns IS 'Generations.';
COMMENT ON COLUMN rollouts.num_malformed IS 'Turns that were neither a search nor an answer.';
COMMENT ON COLUMN rollouts.stop_reason IS 'Why its last generation stopped.';
COMMENT ON COLUMN rollouts.num_tokens IS 'Tokens after the prompt, documents included.';
COMMENT ON COLUMN rollouts.num_completion_tokens IS 'Tokens that the policy sampled.';
COMMENT ON COLUMN rollouts.num_query_tokens IS 'Sampled tokens that lie inside these queries.';
COMMENT ON COLUMN rollouts.outcome IS 'CORRECT when hindsight.label_metric exceeds hindsight.rho, else INCORRECT; whatever labels a hindsight block shows, and without one.';

CREATE TABLE turns (
    run VARCHAR NOT NULL,
    iteration INTEGER NOT NULL,
    rollout_id VARCHAR NOT NULL,
    turn INTEGER NOT NULL,
    action VARCHAR NOT NULL,
    query VARCHAR,
    answer VARCHAR,
    malformed_reason VARCHAR,
    stop_reason VARCHAR NOT NULL,
    text VARCHAR NOT NULL,
    token_start INTEGER NOT NULL,
    token_ids INTEGER[] NOT NULL,
    sampled_logprobs FLOAT[] NOT NULL,
    query_positions INTEGER[] NOT NULL,
    observation_kind VARCHAR,
    observation_text VARCHAR,
    observation_token_ids INTEGER[],
    num_tokens_cut INTEGER,
    answer_probability DOUBLE,
    turn_reward DOUBLE,
    turn_advantage DOUBLE,
    PRIMARY KEY (run, iteration, rollout_id, turn)
);
COMMENT ON TABLE turns IS 'One row a turn: one generation and the environment''s reply.';
COMMENT ON COLUMN turns.rollout_id IS 'Its rollout.';
COMMENT ON COLUMN turns.turn IS 'Place in the rollout, from 0.';
COMMENT ON COLUMN turns.action IS 'search, answer or malformed.';
COMMENT ON COLUMN turns.query IS 'The query of a search; one without an observation was not sent, or found what did not fit the context.';
COMMENT ON COLUMN turns.answer IS 'The answer that ends the rollout.';
COMMENT ON COLUMN turns.malformed_reason IS 'What was ill-formed.';
COMMENT ON COLUMN turns.token_start IS 'Place of the turn''s first token among the rollout''s tokens after the prompt.';
COMMENT ON COLUMN turns.observation_kind IS 'documents or notice; empty on the last turn.';
COMMENT ON COLUMN turns.observation_text IS 'What the environment replied.';
COMMENT ON COLUMN turns.observation_token_ids IS 'Its tokens; the policy is never trained on them.';
COMMENT ON COLUMN turns.answer_probability IS 'How probable the policy found the golden answer before the turn, geometric mean over its tokens; empty without reward.turn.';
COMMENT ON COLUMN turns.turn_reward IS 'What the turn earned: the gain in that probability, and the last turn the rollout''s reward.';
COMMENT ON COLUMN turns.turn_advantage IS 'The advantage of its tokens, in place of the rollout''s.';

CREATE TABLE searches (
    run VARCHAR NOT NULL,
    iteration INTEGER NOT NULL,
    rollout_id VARCHAR NOT NULL,
    turn INTEGER NOT NULL,
    group_id VARCHAR NOT NULL,
    query VARCHAR NOT NULL,
    num_hits INTEGER NOT NULL,
    hit BOOLEAN NOT NULL,
    passage_ids VARCHAR[] NOT NULL,
    titles VARCHAR[] NOT NULL,
    scores DOUBLE[] NOT NULL,
    golden BOOLEAN[] NOT NULL,
    num_retries INTEGER NOT NULL,
    PRIMARY KEY (run, iteration, rollout_id, turn)
);
COMMENT ON TABLE searches IS 'One row a search with what it found, best first; queries that were not sent have none.';
COMMENT ON COLUMN searches.rollout_id IS 'Its rollout.';
COMMENT ON COLUMN searches.turn IS 'Its turn in the rollout, from 0.';
COMMENT ON COLUMN searches.group_id IS 'Its group.';
COMMENT ON COLUMN searches.query IS 'The query''s text.';
COMMENT ON COLUMN searches.num_hits IS 'Passages found.';
COMMENT ON COLUMN searches.hit IS 'True when a found passage contains a golden answer.';
COMMENT ON COLUMN searches.passage_ids IS 'Ids of the passages found.';
COMMENT ON COLUMN searches.titles IS 'Their titles.';
COMMENT ON COLUMN searches.scores IS 'Inner products of query and passage; higher is closer.';
COMMENT ON COLUMN searches.golden IS 'For each passage, whether it contains a golden answer.';
COMMENT ON COLUMN searches.num_retries IS 'Requests to retrieval servers with this query that were repeated in the iteration; 0 where the first answer was good.';

CREATE TABLE iteration_metrics (
    run VARCHAR NOT NULL,
    iteration INTEGER NOT NULL,
    policy_version INTEGER NOT NULL,
    num_groups INTEGER NOT NULL,
    num_rollouts INTEGER NOT NULL,
    reward_mean DOUBLE NOT NULL,
    reward_std DOUBLE NOT NULL,
    em DOUBLE NOT NULL,
    f1 DOUBLE NOT NULL,
    valid_share DOUBLE NOT NULL,
    malformed_share DOUBLE NOT NULL,
    zero_advantage_share DOUBLE NOT NULL,
    all_correct_share DOUBLE NOT NULL,
    all_incorrect_share DOUBLE NOT NULL,
    searches_per_rollout DOUBLE NOT NULL,
    distinct_queries_per_group DOUBLE NOT NULL,
    search_quality DOUBLE NOT NULL,
    completion_tokens_mean DOUBLE NOT NULL,
    num_completion_tokens BIGINT NOT NULL,
    num_retries INTEGER NOT NULL,
    num_retries_correct INTEGER NOT NULL,
    num_retry_tokens BIGINT NOT NULL,
    num_filtered_groups INTEGER NOT NULL,
    num_replacement_groups INTEGER NOT NULL,
    PRIMARY KEY (run, iteration)
);
COMMENT ON TABLE iteration_metrics IS 'One row an iteration: what its rollouts say, before the update.';
COMMENT ON COLUMN iteration_metrics.policy_version IS 'Updates behind the weights that sampled.';
COMMENT ON COLUMN iteration_metrics.num_groups IS 'Groups.';
COMMENT ON COLUMN iteration_metrics.num_rollouts IS 'Rollouts.';
COMMENT ON COLUMN iteration_metrics.reward_mean IS 'Mean raw reward.';
COMMENT ON COLUMN iteration_metrics.reward_std IS 'Unbiased standard deviation of the raw reward over all rollouts.';
COMMENT ON COLUMN iteration_metrics.em IS 'Mean exact match of the sampled answers.';
COMMENT ON COLUMN iteration_metrics.f1 IS 'Mean token F1 of the sampled answers.';
COMMENT ON COLUMN iteration_metrics.valid_share IS 'Share of rollouts with a valid format.';
COMMENT ON COLUMN iteration_metrics.malformed_share IS 'Share of turns that were empty or ill-formed.';
COMMENT ON COLUMN iteration_metrics.zero_advantage_share IS 'Share of groups in which every advantage is 0.';
COMMENT ON COLUMN iteration_metrics.all_correct_share IS 'Share of groups whose rollouts are all CORRECT.';
COMMENT ON COLUMN iteration_metrics.all_incorrect_share IS 'Share of groups whose rollouts are all INCORRECT.';
COMMENT ON COLUMN iteration_metrics.searches_per_rollout IS 'Mean number of searches of a rollout.';
COMMENT ON COLUMN iteration_metrics.distinct_queries_per_group IS 'Mean number of different query texts of a group.';
COMMENT ON COLUMN iteration_metrics.search_quality IS 'Share of retrieved passages that contain a golden answer; 0 when none was retrieved.';
COMMENT ON COLUMN iteration_metrics.completion_tokens_mean IS 'Mean sampled tokens of a rollout (response length).';
COMMENT ON COLUMN iteration_metrics.num_completion_tokens IS 'Sampled tokens of all rollouts.';
COMMENT ON COLUMN iteration_metrics.num_retries IS 'Retries (rollout.retries), which no other figure here counts.';
COMMENT ON COLUMN iteration_metrics.num_retries_correct IS 'Retries that are CORRECT.';
COMMENT ON COLUMN iteration_metrics.num_retry_tokens IS 'Sampled tokens of the retries.';
COMMENT ON COLUMN iteration_metrics.num_filtered_groups IS 'Groups that grpo.filter leaves out of the policy loss and its KL.';
COMMENT ON COLUMN iteration_metrics.num_replacement_groups IS 'Groups of further questions (grpo.filter ''resample''), which num_groups counts too.';

CREATE TABLE retries (
    run VARCHAR NOT NULL,
    iteration INTEGER NOT NULL,
    rollout_id VARCHAR NOT NULL,
    group_id VARCHAR NOT NULL,
    rollout_index INTEGER NOT NULL,
    answer VARCHAR,
    queries VARCHAR[] NOT NULL,
    num_turns INTEGER NOT NULL,
    num_completion_tokens INTEGER NOT NULL,
    sampled_logprobs FLOAT[] NOT NULL,
    block_text VARCHAR NOT NULL,
    em DOUBLE NOT NULL,
    f1 DOUBLE NOT NULL,
    valid_format BOOLEAN NOT NULL,
    num_hits INTEGER NOT NULL,
    num_golden_hits INTEGER NOT NULL,
    reward DOUBLE NOT NULL,
    advantage DOUBLE NOT NULL,
    outcome VARCHAR NOT NULL,
    PRIMARY KEY (run, iteration, rollout_id)
);
COMMENT ON TABLE retries IS 'One row a retry (rollout.retries): a rollout of a group without a CORRECT one, sampled with its hindsight block.';
COMMENT ON COLUMN retries.rollout_index IS 'Place in its group; retries follow the siblings.';
COMMENT ON COLUMN retries.answer IS 'Final answer; empty when it ended without one.';
COMMENT ON COLUMN retries.queries IS 'What it searched for, in order.';
COMMENT ON COLUMN retries.num_turns IS 'Generations.';
COMMENT ON COLUMN retries.num_completion_tokens IS 'Tokens that the policy sampled.';
COMMENT ON COLUMN retries.sampled_logprobs IS 'The log-probability of each sampled token, nats, of the policy that read the block.';
COMMENT ON COLUMN retries.block_text IS 'The block that it read.';
COMMENT ON COLUMN retries.outcome IS 'CORRECT when hindsight.label_metric exceeds hindsight.rho, else INCORRECT.';
