"""Bad input: words of a command, and what the one line of error says. `|` stands between them."""

BASES = {  # command -> the words that each of its rows adds to
    "fit": "experiment=smoke/draft_opd logger=none",
    "fit data=mixed": "experiment=smoke/draft_opd logger=none data=mixed callbacks=ema objective=jsd",
    "fit drafter=eagle3": "experiment=smoke/eagle3_sft logger=none",
    "fit prompts=jsonl": "experiment=smoke/sft logger=none prompts=jsonl prompts.path=mine.jsonl",
    "fit target=smollm2_135m": "prompts=reasoning_gym target=smollm2_135m logger=none",
    "fit target=hf": "experiment=smoke/redraft logger=none prompts=hub prompts.path=a/b target=hf target.path=a/b",
    "fit objective=dspark": "experiment=smoke/sft logger=none objective=dspark",
    "fit texts=engine": "experiment=smoke/sft logger=none texts=engine texts.writer.urls=[http://localhost:8000]",
    "fit texts=jsonl": "experiment=smoke/sft logger=none texts=jsonl texts.writer.path=answers.jsonl",
    "fit stages": "experiment=smoke logger=none",
    "evaluate": "checkpoint=0123456789abcdef0123456789abcdef logger=none prompts=eval/gsm8k",
    "compare": "runs=[draftopd] logger=none",
    "export": "run=0123456789abcdef0123456789abcdef layout=zlab logger=none",
    "chat": "checkpoint=0123456789abcdef0123456789abcdef logger=none",
    "check": "folder=nowhere",
}

VALUES = {
    "fit": """
seed=-1 | seed=-1 must be a whole number of at least 0 and below 4294967296
seed=abc | seed=abc must be a whole number
seed=null | seed=null must be a whole number
seed=1.0 | seed=1.0 must be a whole number
seed=true | seed=true must be a whole number
seed=4294967296 | below 4294967296
seed=[0,1] | seed=[0, 1] must be
seed=${nothing} | nothing
name=null | name=null must be text, and not empty
name='' | name='' must be text, and not empty
name=5 | name=5 must be text
name=[a] | name=[a] must be text
cache_dir=null | cache_dir=null must be text
cache_dir=3 | cache_dir=3 must be text
init_from=3 | init_from=3 must be text, and not empty, or null
init_from=none.ckpt | 'none.ckpt' is neither a checkpoint file
from_scratch=false | fit trains on what its drafter drafts and would start from random weights
from_scratch=1 | from_scratch=1 must be true or false
init_optimizer=1 | init_optimizer=1 must be true or false
init_optimizer=yes | init_optimizer=yes must be true or false
init_optimizer=true | init_optimizer=true takes the optimizer of init_from
resume=none.ckpt | 'none.ckpt' is neither a checkpoint file
resume=. | resume=. is a folder without optimizer and step
resume=true | resume=true must be text
stages=3 | stages=3 must be a section of names and values, or null
stages={a:3} | stages={a: 3} must be
stages={a:{}} | stages.a.experiment must be given
stages={a:{experiment:smoke/sft}} | stages.a.init_from must be given
stages={a:{experiment:null,init_from:null}} | stages.a.experiment=null must be text
stages={a:{experiment:smoke/sft,init_from:null,gird:{}}} | stages.a has no setting gird: did you mean grid?
stages={a:{experiment:smoke/sft,init_from:null,grid:{seed:0}}} | stages.a.grid={seed: 0} must be
only=sft | only=sft must be a list, each text, or null
reached_only=maybe | reached_only=maybe must be true or false
reached_only=null | reached_only=null must be true or false
+objectives=3 | fit has no setting objectives: did you mean objective?
+buget.steps=3 | fit has no setting buget: did you mean budget?
budget.epochs=-1 | budget.epochs=-1 must be a number above 0, or null
budget.epochs=0 | budget.epochs=0 must be a number above 0, or null
budget.epochs=x | budget.epochs=x must be a number
budget.epochs=inf | budget.epochs=inf must be
budget.epochs=nan | budget.epochs=nan must be
budget.epochs=null | no budget: give one of budget.epochs, budget.steps
budget.steps=x | budget.steps=x must be a whole number of at least 1, or null
budget.steps=-5 | budget.steps=-5 must be a whole number of at least 1, or null
budget.steps=0.5 | budget.steps=0.5 must be a whole number of at least 1, or null
budget.steps=0 | budget.steps=0 must be
budget.steps=true | budget.steps=true must be
budget.flops=-1e9 | budget.flops=-1000000000.0 must be a number above 0
budget.flops=many | budget.flops=many must be a number
budget.target_tokens=0 | budget.target_tokens=0 must be
budget.minutes=nan | budget.minutes=nan must be
budget.minutes=[1] | budget.minutes=[1] must be
+budget.hours=1 | budget has no setting hours
test.prompts=-1 | test.prompts=-1 must be a whole number of at least 0, or null
test.prompts=all | test.prompts=all must be
test.prompts=0.5 | test.prompts=0.5 must be
test.speedup_prompts=-1 | test.speedup_prompts=-1 must be
test.speedup_prompts=null | test.speedup_prompts=null must be
test.redraft=2 | test.redraft=2 must be true or false
+test.prompt=2 | test has no setting prompt: did you mean prompts?
test=null | test=null must be a section of settings
target.seed=-1 | target.seed=-1 must be
target.cpu_layers=3 | target.cpu_layers=3 must be true or false, or null
+target.scale=0 | target.scale=0 must be a number above 0
target.architecture=null | target.architecture=null must be a section
target.architecture.model_type=nothing | target.architecture=
target.architecture.hidden_size=abc | target.architecture=
target.architecture.hidden_size=-4 | target.architecture=
target.architecture.num_hidden_layers=x | target.architecture=
target._target_=draftopd.target.load.tyni | target._target_=draftopd.target.load.tyni is not to be found
target._target_=3 | target has no _target_
target=3 | target=3 must be a section of settings
drafter.num_layers=0 | drafter.num_layers=0 must be a whole number of at least 1
drafter.num_layers=two | drafter.num_layers=two must be
drafter.block_size=4.5 | drafter.block_size=4.5 must be a whole number of at least 2
drafter.block_size=1 | drafter.block_size=1 must be a whole number of at least 2
drafter.block_size=-3 | drafter.block_size=-3 must be
drafter.layer_ids=abc | drafter.layer_ids=abc must be a list of layers of the target
drafter.layer_ids=[] | drafter.layer_ids=[] must be a list of layers
drafter.layer_ids=[-1] | drafter.layer_ids=[-1] must be a list of layers
drafter.layer_ids=[1.5] | drafter.layer_ids=[1.5] must be
drafter.layer_ids=3 | drafter.layer_ids=3 must be a list
drafter.num_taps=0 | drafter.num_taps=0 must be
drafter.draft_vocab_size=0 | drafter.draft_vocab_size=0 must be a whole number of at least 1, or null
drafter.draft_vocab_size=4k | drafter.draft_vocab_size=4k must be
drafter.init=rndom | drafter.init=rndom must be random or target: did you mean random?
drafter.init=null | drafter.init=null must be random or target
drafter.head_dim=0 | drafter.head_dim=0 must be
drafter.num_attention_heads=-2 | drafter.num_attention_heads=-2 must be
drafter.rms_norm_eps=-1 | drafter.rms_norm_eps=-1 must be a number above 0, or null
drafter.rope_theta=0 | drafter.rope_theta=0 must be
drafter.path=3 | drafter.path=3 must be text
+drafter.layers=3 | drafter has no setting layers: did you mean
objective.position_decay=2 | objective.position_decay=2 must be a number of at least 0 and at most 1
objective.accepted=-1 | objective.accepted=-1 must be a number of at least 0
objective.rejected=none | objective.rejected=none must be a number
objective.rejected_slots=fist | objective.rejected_slots=fist must be all or first: did you mean first?
objective.correction=3 | objective.correction=3 must be true or false
objective.accepted_divergence=forward_kl | objective.accepted_divergence=forward_kl must be a section with a _target_
objective.accepted_divergence._target_=draftopd.objectives.divergences.kll | is not to be found
objective._target_=draftopd.objectives.base.Objectiv | objective._target_=
objective=null | objective=null must be a section of settings
+objective.decay=3 | objective has no setting decay
data.skip_share=1 | data.skip_share=1 must be a number of at least 0 and below 1
data.skip_share=-0.1 | data.skip_share=-0.1 must be
data.seed=-1 | data.seed=-1 must be
data.prompts_per_epoch=0 | data.prompts_per_epoch=0 must be
data.keep_gib=-1 | data.keep_gib=-1 must be
data.keep_gib=lots | data.keep_gib=lots must be
data.place=tiled | data.place=tiled must be
data.traces=rollouts | data.traces=rollouts must be a section with a _target_
data.batching.batch_size=0 | data.batching.batch_size=0 must be a whole number of at least 1
data.batching.batch_size=8.0 | data.batching.batch_size=8.0 must be
data.batching.micro_batch_size=0 | data.batching.micro_batch_size=0 must be
data.batching.micro_batch_size=null | data.batching.micro_batch_size=null must be
data.batching.val_anchors=0 | data.batching.val_anchors=0 must be
data.batching.max_prompt_length=-1 | data.batching.max_prompt_length=-1 must be
data.batching.enable_thinking=on | data.batching.enable_thinking=on must be true or false, or null
data.batching.vocabulary_texts=0 | data.batching.vocabulary_texts=0 must be
data.batching=null | data.batching=null must be a section with a _target_
+data.batching.size=3 | data.batching has no setting size
data.decoding.max_new_tokens=0 | data.decoding.max_new_tokens=0 must be
data.decoding.batch_size=x | data.decoding.batch_size=x must be
data.decoding.temperature=-1 | data.decoding.temperature=-1 must be a number of at least 0
data.decoding.temperature=nan | data.decoding.temperature=nan must be
data.decoding.temperature=hot | data.decoding.temperature=hot must be
data.decoding.top_k=0 | data.decoding.top_k=0 must be
data.decoding.top_k=1.5 | data.decoding.top_k=1.5 must be
data.decoding.top_p=1.5 | data.decoding.top_p=1.5 must be a number above 0 and at most 1, or null
data.decoding.top_p=0 | data.decoding.top_p=0 must be
data.decoding.min_p=-0.1 | data.decoding.min_p=-0.1 must be
data.decoding.rule=token | data.decoding.rule=token must be token_matching or rejection
data.decoding.rule=token-matching | did you mean token_matching?
data.decoding.seed=null | data.decoding.seed=null must be
data.decoding.memory_gib=0 | data.decoding.memory_gib=0 must be a number above 0
data.decoding.memory_gib=inf | data.decoding.memory_gib=inf must be
traces.reuse=0 | traces.reuse=0 must be a whole number of at least 1
traces.reuse=half | traces.reuse=half must be
prompts.train=0 | prompts.train=0 must be
prompts.train=-1 | prompts.train=-1 must be
prompts.val=-1 | prompts.val=-1 must be
prompts.seed=x | prompts.seed=x must be
texts.features_dtype=bf16 | texts.features_dtype=bf16 must be float32, bfloat16, float16, float64, or null
texts.features_dtype=float | texts.features_dtype=float must be
texts.features_dtype=bfloat | did you mean bfloat16?
texts.shard_size=0 | texts.shard_size=0 must be
texts.folder=null | texts.folder=null must be text
texts.folder=mine.jsonl/texts | cannot be written
texts.folder=/proc/texts | cannot be written
texts.charged=1 | texts.charged=1 must be true or false
module.chunk_rows=0 | module.chunk_rows=0 must be
module.chunk_rows=-4 | module.chunk_rows=-4 must be
module.warmup_steps=-1 | module.warmup_steps=-1 must be
module.warmup_steps=0.1 | module.warmup_steps=0.1 must be a whole number
module.gradient_clip=0 | module.gradient_clip=0 must be a number above 0
module.gradient_clip=nan | module.gradient_clip=nan must be
module.attention=flash | module.attention=flash must be sdpa or flex_attention
module.attention=flex_attention | module.attention=flex_attention needs a GPU
module.gradient_checkpointing=1 | module.gradient_checkpointing=1 must be
module.torch_compile=2 | module.torch_compile=2 must be true or false or text
data.decoding.compile=2 | data.decoding.compile=2 must be true or false or text
data.decoding.compile=inductr | data.decoding.compile=inductr is no backend of torch.compile
module.optimizer.lr=-1 | module.optimizer.lr=-1 must be a number above 0
module.optimizer.lr=0 | module.optimizer.lr=0 must be
module.optimizer.lr=nan | module.optimizer.lr=nan must be
module.optimizer.lr=inf | module.optimizer.lr=inf must be
module.optimizer.lr=fast | module.optimizer.lr=fast must be
module.optimizer.lr=null | module.optimizer.lr=null must be
module.optimizer.betas=0.9 | module.optimizer.betas=0.9 must be a list
module.optimizer.betas=[0.9] | module.optimizer.betas=[0.9] must be
module.optimizer.betas=[0.9,2.0] | module.optimizer cannot be made: Invalid beta parameter
module.optimizer.weight_decay=-1 | module.optimizer.weight_decay=-1 must be
+module.optimizer.momentum=0.9 | module.optimizer has no setting momentum
+module.optimizer.learning_rate=1 | module.optimizer has no setting learning_rate
module.optimizer=adam | module.optimizer=adam must be a section with a _target_
module.optimizer._target_=torch.optim.AdamX | module.optimizer._target_=torch.optim.AdamX is not to be found
+module.clip=3 | module has no setting clip
trainer.devices=0 | trainer cannot be made
trainer.devices=-2 | trainer cannot be made
trainer.devices=many | trainer cannot be made
trainer.devices=2 | take trainer=ddp
trainer.accelerator=cuda | trainer cannot be made
trainer.accelerator=abacus | trainer cannot be made
trainer.precision=bf16 mixed | trainer.precision=bf16 mixed must be
trainer.precision=bf16-mix | did you mean bf16-mixed?
trainer.max_epochs=-5 | trainer.max_epochs=-5 must be
trainer.max_epochs=0 | trainer.max_epochs=0 must be
trainer.check_val_every_n_epoch=0 | trainer.check_val_every_n_epoch=0 must be
trainer.check_val_every_n_epoch=null | trainer.check_val_every_n_epoch=null must be
trainer.reload_dataloaders_every_n_epochs=0 | must be 1
trainer.inference_mode=true | trainer.inference_mode=true must be false
trainer.log_every_n_steps=x | trainer.log_every_n_steps=x must be
+trainer.accumulate_grad_batches=2 | trainer.accumulate_grad_batches=2 must be 1
+trainer.gradient_clip_val=1.0 | trainer.gradient_clip_val=1.0 must be null
+trainer.limit_train_batches=-1 | trainer cannot be made
+trainer.strategy=nothing | trainer cannot be made
+trainer.epochs=3 | trainer has no setting epochs: did you mean
trainer=null | trainer=null must be a section
callbacks.acceptance_length.limit=-1 | callbacks.acceptance_length.limit=-1 must be
callbacks.acceptance_length.limit=0 | callbacks.acceptance_length.limit=0 must be
callbacks.trace_log.examples=-1 | callbacks.trace_log.examples=-1 must be
callbacks.diagnostics.texts=0 | callbacks.diagnostics.texts=0 must be
callbacks.diagnostics.rows=many | callbacks.diagnostics.rows=many must be
callbacks.speedup.prompts=-1 | callbacks.speedup.prompts=-1 must be
callbacks.checkpoint.mode=maximum | callbacks cannot be made
callbacks.checkpoint.monitor=acceptance | callbacks.checkpoint.monitor=acceptance must be a metric of validations
callbacks.last_checkpoint.save_on_train_epoch_end=3 | must be true or false, or null
+callbacks.last_checkpoint.every_n_epochs=-1 | callbacks cannot be made
callbacks.progress=null | callbacks.progress=null must be a section
+callbacks.ema={decay:0.9} | callbacks.ema has no _target_
callbacks=null | callbacks=null must be a section
""",
    "fit data=mixed": """
data.own_share=1.5 | data.own_share=1.5 must be a number of at least 0 and at most 1
data.own_share_end=-0.1 | data.own_share_end=-0.1 must be a number of at least 0 and at most 1, or null
data.num_anchors=0 | data.num_anchors=0 must be
callbacks.ema.decay=1 | callbacks.ema.decay=1 must be a number of at least 0 and below 1
callbacks.ema.decay=slow | callbacks.ema.decay=slow must be
objective.divergence.beta=1 | objective.divergence.beta=1 must be a number above 0 and below 1
+objective.divergence.gamma=1 | objective.divergence has no setting gamma
objective.decay=0 | objective.decay=0 must be a number above 0, or null
objective.target_temperature=-1 | objective.target_temperature=-1 must be
objective.clamp=0 | objective.clamp=0 must be
""",
    "fit drafter=eagle3": """
drafter.num_layers=2 | drafter.num_layers=2 must be 1
drafter.layer_ids=low | drafter.layer_ids=low must be a list of layers
+drafter.num_taps=3 | drafter has no setting num_taps
""",
    "fit prompts=jsonl": """
prompts.path=none.jsonl | no prompt file none.jsonl
prompts.path=3 | prompts.path=3 must be text
prompts.path=??? | prompts.path must be given
prompts.val_path=none.jsonl | no prompt file none.jsonl
prompts.records=-1 | prompts.records=-1 must be a whole number of at least 1, or null
prompts.records=0 | prompts.records=0 must be
prompts.train=0 | prompts.train=0 must be
prompts.test=-2 | prompts.test=-2 must be
prompts.template=null | prompts.template=null must be text with {prompt} in it
prompts.template=Solve | prompts.template=Solve must be text with {prompt} in it
prompts.prompt_field=null | prompts.prompt_field=null must be text
prompts.id_field=3 | prompts.id_field=3 must be text, or null
+prompts.split=train | prompts has no setting split
""",
    "fit target=smollm2_135m": """
prompts.tasks=gcd | prompts.tasks=gcd must be a section
prompts.tasks={gcd:3} | prompts.tasks={gcd: 3} must be
prompts.tasks={gcd:{max_value:nan}} | prompts.tasks={gcd: {max_value: nan}} must be
prompts.train=null | prompts.train=null must be
target.mask_token=a | target.mask_token=a must be a token in angle brackets
target.mask_token=null | target.mask_token=null must be
target.wheel=3 | target.wheel=3 must be text, or null
target.cache_dir=null | target.cache_dir=null must be
+target.dtype=half | target.dtype=half must be float32
""",
    "fit target=hf": """
prompts.path=null | prompts.path=null must be text
prompts.hub_split=null | prompts.hub_split=null must be text
prompts.records=-1 | prompts.records=-1 must be
target.path=null | target.path=null must be text
target.path=./nowhere | no target at './nowhere'
target.dtype=bf16 | target.dtype=bf16 must be float32, bfloat16
target.attention=flash_attention_2 | target.attention=flash_attention_2 must be sdpa or eager
target.mask_token_id=-1 | target.mask_token_id=-1 must be a whole number of at least 0, or null
target.mask_token_id='<mask>' | target.mask_token_id=<mask> must be
target.trust_remote_code=please | target.trust_remote_code=please must be true or false
traces.rewrite_every=0 | traces.rewrite_every=0 must be
traces.rewrite_every=2 | needs data.decoding.temperature above 0
""",
    "fit objective=dspark": """
objective.weights={cross_entropy:1} | must name the objectives
objective.weights={cross_entropy:-1,total_variation:1} | total_variation: 1} must be
objective.weights={cross_entropy:0,total_variation:0} | must add up to more than 0
objective.weights=1 | objective.weights=1 must be a section
objective.objectives.cross_entropy.decay=-1 | objective.objectives.cross_entropy.decay=-1 must be
+objective.objectives.cross_entropy.beta=1 | objective.objectives.cross_entropy has no setting beta
objective.objectives.total_variation.target_temperature=0.5 | needs objective.whole_vocabulary=false
""",
    "fit texts=engine": """
texts.writer.urls=[] | texts.writer.urls=[] must be a list of addresses of servers, as in [http://localhost:8000]
texts.writer.urls=[localhost:8000] | texts.writer.urls=[localhost:8000] must be a list of addresses
texts.writer.urls=http://localhost:8000 | must be a list of addresses
texts.writer.urls=null | texts.writer.urls=null must be
texts.writer.model='' | texts.writer.model='' must be text, and not empty, or null
texts.writer.concurrency=0 | texts.writer.concurrency=0 must be a whole number of at least 1
texts.writer.timeout=0 | texts.writer.timeout=0 must be a number above 0
texts.writer.patience=-1 | texts.writer.patience=-1 must be a number of at least 0
texts.writer.check=1.5 | texts.writer.check=1.5 must be a whole number of at least 0
texts.writer.tie=small | texts.writer.tie=small must be a number of at least 0, or null
texts.writer=engine | texts.writer=engine must be a section with a _target_
+texts.writer.url=[] | texts.writer has no setting url: did you mean urls?
texts_only=1 | texts_only=1 must be true or false
""",
    "fit texts=jsonl": """
texts.writer.path=null | texts.writer.path=null must be text, and not empty
texts.writer.check=-1 | texts.writer.check=-1 must be
""",
    "fit stages": """
init_from=mine.jsonl | smoke has stages of its own
resume=mine.jsonl | smoke has stages of its own
only=[sfd] | there are no such stages
""",
    "evaluate": """
checkpoint=null | checkpoint=null must be text
checkpoint=??? | checkpoint must be given
checkpoint=none.ckpt | 'none.ckpt' is neither a checkpoint file
checkpoint=[none.ckpt] | 'none.ckpt' is neither a checkpoint file
checkpoint=[3] | checkpoint=[3] must be
against=none.ckpt | 'none.ckpt' is neither a checkpoint file
device=cuda:77 | device=cuda:77 is not on this machine
device=gpu | device=gpu is not on this machine
device=meta | device=meta is not on this machine
device=3 | device=3 must be text
split=tset | split=tset must be test, val, train, or null: did you mean test?
limit=-1 | limit=-1 must be a whole number of at least 1, or null
limit=0 | limit=0 must be
limit=ten | limit=ten must be
max_prompt_length=0 | max_prompt_length=0 must be
enable_thinking=maybe | enable_thinking=maybe must be true or false, or null
decoding.max_new_tokens=0 | decoding.max_new_tokens=0 must be
decoding.temperature=-0.5 | decoding.temperature=-0.5 must be
decoding.rule=greedy | decoding.rule=greedy must be token_matching or rejection
decoding.memory_gib=-3 | decoding.memory_gib=-3 must be
+decoding.topk=3 | decoding has no setting topk: did you mean top_k?
speed.prompts=-1 | speed.prompts=-1 must be
speed.block_sizes=[1] | speed.block_sizes=[1] must be a list, each a whole number of at least 2 and at most 1024
speed.block_sizes=4 | speed.block_sizes=4 must be a list
speed=null | speed=null must be a section
prompts.test=-3 | prompts.test=-3 must be
prompts.template='{question}' | prompts.template={question} must be text with {prompt} in it
prompts.set=null | prompts.set=null must be
""",
    "compare": """
runs=draftopd | runs=draftopd must be a list, each text, and not empty
runs=[3] | runs=[3] must be
to=3 | to=3 must be text
against='' | against='' must be text
""",
    "chat": """
checkpoint=3 | checkpoint=3 must be text
prompt=3 | prompt=3 must be text
plain=2 | plain=2 must be true or false
device=gpu | device=gpu is not on this machine
decoding.max_new_tokens=0 | decoding.max_new_tokens=0 must be a whole number of at least 1
decoding.temperature=hot | decoding.temperature=hot must be
""",
    "export": """
layout=zlb | layout=zlb must be deepspec, zlab, safeai, speculators, or null: did you mean zlab?
run=none.ckpt | 'none.ckpt' is neither a checkpoint file
run=3 | run=3 must be text
to=3 | to=3 must be text
target_name=[a] | target_name=[a] must be text
license=3 | license=3 must be text
results=none.json | cannot read none.json
push_to_hub=mine | push_to_hub=mine names no owner
push_to_hub=a/b/c | push_to_hub=a/b/c is no repository of the hub
private=null | private=null must be true or false
""",
    "check": """
folder=null | folder=null must be text
folder=3 | folder=3 must be text
""",
}

WORDS = """
fit texts=engine | texts.writer.urls must be given: add texts.writer.urls=... to the command
fit texts=engin | there is no texts=engin: did you mean engine? (choose from cache, engine, jsonl
fit experiment=smoke/stf | there is no experiment=smoke/stf: did you mean smoke/sft? (choose from ablations/acc
fit objective=draft_op | there is no objective=draft_op: did you mean draft_opd? (choose from accept_until_fail,
fit prompts=eval/gsmk | there is no prompts=eval/gsmk: did you mean eval/gsm8k? (choose from eval/aime25,
fit objectiv=draft_opd | there is no setting objectiv: did you mean objective? (choose from name, seed,
fit drafter.layers=3 | there is no setting drafter.layers: did you mean
fit data.batching.batchsize=3 | there is no setting data.batching.batchsize: did you mean batch_size?
fit traces.rewrite_every=2 | there is no setting traces.rewrite_every (choose from reuse)
fit hydra.run.dr=x | there is no setting hydra.run.dr: did you mean dir?
fit ~lgger | there is no lgger: did you mean logger?
fit objective@random=draft_opd | there is no objective@random
fit seed | seed cannot be read
fit seed=[1, | seed=[1, cannot be read
fit target.mask_token=<a> | target.mask_token=<a> cannot be read
fit target=null | Config group override must be a string
fit data=common | data has no _target_
fit prompts=jsonl | prompts.path must be given
fit random_objective=draft_opd | there is no setting random_objective
fit experiment=smoke stages.sft.experiment=smoke/stf | there is no experiment=smoke/stf: did you mean smoke/sft?
fit experiment=smoke stages.sft.init_from=none.ckpt | 'none.ckpt' is neither a checkpoint file
fit experiment=smoke drafter.num_layers=0 | drafter.num_layers=0 must be
fit experiment=smoke/sft objective@random_objective=d_pace | random_objective is for data=mixed
fit experiment=smoke/sft hydra.run.dir=null | Error merging override hydra.run.dir=null: 
fit --mutlirun experiment=smoke | unrecognized arguments: --mutlirun
evaluate | checkpoint must be given
evaluate checkpoint=x prompts=eval/gsm9k | did you mean eval/gsm8k?
compare | runs must be given
chat | checkpoint must be given
chat checkpoint=x | 'x' is neither a checkpoint file
export layout=zlab | run must be given
check | folder must be given
"""
