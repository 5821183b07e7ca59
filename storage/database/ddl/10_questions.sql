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
COMMENT ON COLUMN question_sets.dataset IS 'Name of the data set.';
COMMENT ON COLUMN question_sets.split IS 'train, dev or test, as the data set names it.';
COMMENT ON COLUMN question_sets.location IS 'Where it was read from, as the settings write it.';
COMMENT ON COLUMN question_sets.num_rows IS 'Rows of this data set in the source.';
COMMENT ON COLUMN question_sets.num_kept IS 'Questions that can be used.';
COMMENT ON COLUMN question_sets.dropped IS 'Rows that were left out: why, how many, and what was wrong with the first.';
COMMENT ON COLUMN question_sets.questions_sha256 IS 'Hash of the questions that were kept, their answers, ids and order.';
COMMENT ON COLUMN question_sets.file IS 'The file of the questions: path below the workspace, sha256, size in bytes.';
COMMENT ON COLUMN question_sets.prepared_at IS 'UTC.';

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
COMMENT ON COLUMN prepared_questions.dataset IS 'Name of the data set.';
COMMENT ON COLUMN prepared_questions.question_id IS 'Id within the data set.';
COMMENT ON COLUMN prepared_questions.split IS 'train, dev or test, as the data set names it.';
COMMENT ON COLUMN prepared_questions.question IS 'The question''s text.';
COMMENT ON COLUMN prepared_questions.golden_answers IS 'Accepted answers.';
COMMENT ON COLUMN prepared_questions.category IS 'The data set''s own type of question; empty when it has none.';
