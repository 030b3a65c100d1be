-- Five questions of a study, for DuckDB. Give it the folders of the study's artifacts:
--
--     W="cargo run --release --quiet -p wherefrom -- path pipelines/quickstart.toml"
--     RANKING=$($W final) DETAILS=$($W details) SCORES=$($W scores) TRAIN=$($W train) LOSSES=$($W losses) \
--         duckdb < examples/study/questions.sql

create macro ranking() as table from read_parquet(getenv('RANKING') || '/*.parquet');
create macro details() as table from read_parquet(getenv('DETAILS') || '/*.parquet');
create macro scores() as table from read_parquet(getenv('SCORES') || '/*.parquet');
create macro train() as table from read_parquet(getenv('TRAIN') || '/*.parquet');
create macro losses() as table from read_parquet(getenv('LOSSES') || '/*.parquet');

-- 1. Which passage speaks most for each completion, and how much of what the completion costs would it take away?
create view strongest as
select ranking.query, doc, round(influence, 3) as influence, round(loss, 2) as cost, round(influence / loss, 2) as of_cost
from ranking() ranking join losses() losses on losses.example = ranking.query
where sign = 'positive' and rank = 1
order by ranking.query;

-- 2. How concentrated is the positive influence: what does the strongest 1 % of the passages hold?
create view concentration as
with positive as (
    select query, influence, row_number() over (partition by query order by influence desc) as place,
           count(*) over (partition by query) as many
    from scores() where influence > 0
)
select query, round(sum(influence) filter (place <= ceil(many * 0.01)) / sum(influence), 3) as top_percent,
       round(sum(influence) ** 2 / sum(influence ** 2), 1) as participation_ratio
from positive group by query order by query;

-- 3. Which passages speak for several completions at once?
create view shared as
select doc, count(*) as queries, list(query order by query) as which, round(sum(influence), 3) as influence
from ranking() where sign = 'positive'
group by doc having count(*) > 1
order by queries desc, influence desc, doc limit 10;

-- 4. Where does the influence of each query's proponents lie: what is the share of each module?
create view modules as
with shares as (
    select query, unnest(by_module) as share, generate_subscripts(by_module, 1) - 1 as module
    from details() where influence > 0
)
select query, module, round(sum(share) / sum(sum(share)) over (partition by query), 4) as share
from shares group by query, module order by query, share desc, module;

-- 5. Which influences rest on one or two tokens (|a|_2 / |a|_1 > 2/3), and on which?
create view few_tokens as
with pairs as (
    select query, example, influence, by_token, list_transform(by_token, lambda x: abs(x)) as sizes from details()
)
select pairs.query, docs[1] as doc, round(influence, 3) as influence,
       round(sqrt(list_sum(list_transform(by_token, lambda x: x * x))) / list_sum(sizes), 3) as ratio,
       list_position(sizes, list_max(sizes)) - 1 as token
from pairs join train() train using (example)
where list_sum(sizes) > 0 and sqrt(list_sum(list_transform(by_token, lambda x: x * x))) / list_sum(sizes) > 2.0 / 3.0
order by ratio desc, pairs.query, example limit 10;

from strongest;
from concentration;
from shared;
from modules where query = 0;
from few_tokens;
