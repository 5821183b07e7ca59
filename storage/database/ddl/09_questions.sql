CREATE TABLE question_sets (
    dataset VARCHAR NOT NULL,
    split VARCHAR NOT NULL,
    location VARCHAR NOT NULL,
    num_rows BIGINT NOT NULL,
    num_kept BIGINT NOT NULL,
    dropped STRUCT(reason VARCHAR, num_rows BIGINT, example VARCHAR)[] NOT NULL,
    questions_sha256 VARCHAR NOT NULL,
    file STRUCT(path VARCHAR, sha256 VARCHAR, size_bytes BIGINT) NOT NULL,
    prepared_at TIMESTAMP NOT NULL,
    PRIMARY KEY (dataset, split)
);
COMMENT ON TABLE question_sets IS 'One row a split of a data set that was prepared: what reading it gave.';

CREATE TABLE prepared_questions (
    question_key VARCHAR NOT NULL,
    dataset VARCHAR NOT NULL,
    question_id VARCHAR NOT NULL,
    split VARCHAR NOT NULL,
    question VARCHAR NOT NULL,
    golden_answers VARCHAR[] NOT NULL,
    category VARCHAR NOT NULL,
    PRIMARY KEY (question_key, split)
);
COMMENT ON TABLE prepared_questions IS 'One row a question of a split that was prepared; questions has those that a run sampled.';
COMMENT ON COLUMN prepared_questions.question_key IS 'dataset:id.';
COMMENT ON COLUMN prepared_questions.question_id IS 'Id within the data set.';
