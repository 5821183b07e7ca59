CREATE TABLE evaluations (
    run VARCHAR NOT NULL,
    iteration INTEGER NOT NULL,
    mode VARCHAR NOT NULL,
    dataset VARCHAR NOT NULL,
    split VARCHAR NOT NULL,
    updates_done INTEGER NOT NULL,
    policy_version INTEGER NOT NULL,
    num_questions INTEGER NOT NULL,
    em DOUBLE NOT NULL,
    f1 DOUBLE NOT NULL,
    search_quality DOUBLE NOT NULL,
    searches_per_rollout DOUBLE NOT NULL,
    valid_share DOUBLE NOT NULL,
    completion_tokens_mean DOUBLE NOT NULL,
    PRIMARY KEY (run, iteration, mode, dataset, split)
);
COMMENT ON TABLE evaluations IS 'One row an evaluation of a policy on a fixed sample of questions.';
COMMENT ON COLUMN evaluations.run IS 'Name of the run.';
COMMENT ON COLUMN evaluations.iteration IS 'Iteration of the run that evaluated.';
COMMENT ON COLUMN evaluations.mode IS 'greedy or sampled.';
COMMENT ON COLUMN evaluations.dataset IS 'Name of the data set.';
COMMENT ON COLUMN evaluations.split IS 'Its split.';
COMMENT ON COLUMN evaluations.updates_done IS 'Updates done before this evaluation.';
COMMENT ON COLUMN evaluations.policy_version IS 'Version of the evaluated weights.';
COMMENT ON COLUMN evaluations.num_questions IS 'Questions.';
COMMENT ON COLUMN evaluations.em IS 'Mean exact match.';
COMMENT ON COLUMN evaluations.f1 IS 'Mean token F1.';
COMMENT ON COLUMN evaluations.search_quality IS 'Share of retrieved passages that contain a golden answer.';
COMMENT ON COLUMN evaluations.searches_per_rollout IS 'Mean number of searches.';
COMMENT ON COLUMN evaluations.valid_share IS 'Share of rollouts with a valid format.';
COMMENT ON COLUMN evaluations.completion_tokens_mean IS 'Mean sampled tokens of a rollout (response length).';

CREATE TABLE evaluation_answers (
    run VARCHAR NOT NULL,
    iteration INTEGER NOT NULL,
    mode VARCHAR NOT NULL,
    dataset VARCHAR NOT NULL,
    split VARCHAR NOT NULL,
    question_key VARCHAR NOT NULL,
    question VARCHAR NOT NULL,
    golden_answers VARCHAR[] NOT NULL,
    category VARCHAR NOT NULL,
    answer VARCHAR,
    queries VARCHAR[] NOT NULL,
    em DOUBLE NOT NULL,
    f1 DOUBLE NOT NULL,
    valid_format BOOLEAN NOT NULL,
    num_hits INTEGER NOT NULL,
    num_golden_hits INTEGER NOT NULL,
    num_completion_tokens INTEGER NOT NULL,
    PRIMARY KEY (run, iteration, mode, dataset, split, question_key)
);
COMMENT ON TABLE evaluation_answers IS 'One row a question of an evaluation.';
COMMENT ON COLUMN evaluation_answers.run IS 'Name of the run.';
COMMENT ON COLUMN evaluation_answers.iteration IS 'Iteration of the run that evaluated.';
COMMENT ON COLUMN evaluation_answers.mode IS 'greedy or sampled.';
COMMENT ON COLUMN evaluation_answers.dataset IS 'Name of the data set.';
COMMENT ON COLUMN evaluation_answers.split IS 'Its split.';
COMMENT ON COLUMN evaluation_answers.question_key IS 'dataset:id.';
COMMENT ON COLUMN evaluation_answers.question IS 'The question''s text.';
COMMENT ON COLUMN evaluation_answers.golden_answers IS 'Accepted answers.';
COMMENT ON COLUMN evaluation_answers.category IS 'The data set''s own type of question.';
COMMENT ON COLUMN evaluation_answers.answer IS 'The policy''s answer; empty when it gave none.';
COMMENT ON COLUMN evaluation_answers.queries IS 'What it searched for, in order.';
COMMENT ON COLUMN evaluation_answers.em IS 'Exact match, 0 or 1.';
COMMENT ON COLUMN evaluation_answers.f1 IS 'Token F1 in [0, 1].';
COMMENT ON COLUMN evaluation_answers.valid_format IS 'True when no turn was malformed and it ended with an answer.';
COMMENT ON COLUMN evaluation_answers.num_hits IS 'Passages retrieved.';
COMMENT ON COLUMN evaluation_answers.num_golden_hits IS 'Retrieved passages that contain a golden answer.';
COMMENT ON COLUMN evaluation_answers.num_completion_tokens IS 'Tokens that the policy sampled.';
