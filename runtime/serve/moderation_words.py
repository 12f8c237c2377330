"""The words that `moderation` looks for. English, and a list: it knows no meaning.

Words of a phrase stand side by side; `*` stands for any end of a word. Text is compared in lower
case, without accents and punctuation.
"""

# What is harmless although it holds a word from below; taken out before anything is looked for.
HARMLESS = """
    naked eye* | naked flame* | naked truth | naked mole rat* | nude lipstick* | nude shade*
    nude colo* | same sex | single sex | opposite sex | sex education | sex of the
    sexual orientation | sexual reproduction of | sexual abuse prevention | pussy willow*
    pussy cat* | killer whale* | killer bee* | suicide prevention | suicide squad
    baby oil | baby blue | baby pink | baby animal* | baby bird* | baby elephant* | baby carrot*
    kid leather | high school reunion | child free | gore tex | murder mystery | body language
"""

# People below 18. Ages are read apart.
MINORS = """
    child | childs | children | childrens | childlike | schoolchild* | grandchild* | kid | kids
    kiddie* | minors | a minor | underage* | under age | below 18 | under 18 | preteen* | pre teen*
    tween | tweens | teen | teens | teenage* | teenie* | adolescent* | prepubescent* | pubescent*
    toddler* | infant* | newborn* | babies | a baby | the baby | baby girl* | baby boy*
    little girl* | little boy* | young girl* | young boy* | small girl* | small boy*
    schoolgirl* | schoolboy* | school girl* | school boy* | kindergart* | preschool* | pre school*
    elementary school* | primary school* | middle school* | junior high | high school*
    highschool* | grader | graders | girl scout* | boy scout* | youngster* | lolita*
"""

# An age is none of a person's before these.
THINGS = """
    whisky | whiskey | scotch | bourbon | rum | wine | port | cheese | car | truck | van | bike
    motorcycle | house | building | church | castle | bridge | tree | oak | dog | cat | horse | mare
    stallion | bread | tradition | company | computer | phone | laptop | record | film
    movie | song
"""

EXPLICIT = """
    porn* | hentai | xxx | nsfw | sex scene* | sex act | sex acts | sex tape* | having sex
    have sex | has sex | sexual intercourse | intercourse | oral sex | anal sex | blowjob*
    blow job* | handjob* | hand job* | cunnilingus | fellatio | masturbat* | orgasm* | orgy | orgies
    gangbang* | threesome* | erection | ejaculat* | cumshot* | cum | genital* | penis | penises
    vagina* | vulva* | dick pic* | pussy | boobs | big tits | topless | nude | nudes | nudity
    naked | nakedness | stark naked | striptease* | strip tease* | stripper* | erotic* | bdsm
    dildo* | sex toy* | horny | prostitut* | fucking her | fucking him | fuck her | fuck him
"""
# Enough beside a minor, not alone.
SUGGESTIVE = """
    sex | sexy | sexual* | sexiest | sensual* | seductive* | seduc* | lingerie | undress*
    without clothes | no clothes | unclothed | bare breast* | breasts | buttocks | fetish*
    arous* | in underwear | lewd* | provocative pose* | molest* | rape | raped | raping | grope*
"""
MINORS_ALONE = """
    child porn* | childporn* | kiddie porn* | kid porn* | child erotica | child sexual abuse | csam
    lolicon* | shotacon* | loli | lolis | shota | jailbait* | jail bait | pedo | pedos | pedophil*
    paedophil* | teen porn* | teenporn* | underage porn*
"""

VIOLENCE = """
    kill | kills | killed | killing | murder* | stab | stabs | stabbed | stabbing* | slaughter*
    massacre* | bloodbath* | tortur* | strangl* | lynch* | assassinat* | execution by
    beaten to death | beats to death | mass shooting* | shooting spree* | school shooting*
    shoots the crowd | shoot people | shoots people | dead body | dead bodies | corpse* | genocide
    beats his wife | beats her | beats him up | gunned down | terrorist attack*
"""
GRAPHIC = """
    gore | gory | decapitat* | behead* | dismember* | disembowel* | eviscerat* | mutilat*
    entrails | guts spill* | severed head* | severed limb* | severed arm* | severed hand*
    blood spray* | blood spurt* | blood splatter* | blood gush* | bloody corpse* | snuff film*
    flayed | brains splatter*
"""

SELF_HARM = """
    suicid* | self harm* | self injur* | kill myself | kills himself | kills herself
    cutting herself | cutting himself | cuts her wrist* | cuts his wrist* | slit wrist*
    slits her wrist* | slits his wrist* | hangs himself | hangs herself | pro ana
    thinspiration | thinspo
"""
SELF_HARM_INTENT = """
    i want to die | kill myself | end my life | ending my life | hurt myself | harm myself
    i am going to hang myself | i do not want to live
"""
SELF_HARM_INSTRUCTIONS = """
    how to kill myself | how to kill yourself | how to commit suicide | how to self harm
    how to cut myself | how to cut yourself | suicide method* | painless way to die
    how to hang myself | how to hide an eating disorder
"""

HARASSMENT = """
    kill yourself | kys | you are worthless | you worthless | stupid bitch* | ugly bitch*
    you bitch | you whore | you slut* | dumb whore* | nobody likes you | everyone hates you
    you are disgusting | you retard* | fucking retard*
"""
THREATS = """
    i will kill you | i ll kill you | ill kill you | going to kill you | gonna kill you
    i will hurt you | i ll hurt you | i will find you and | you deserve to die | you will die
"""

HATE = """
    white power | white supremac* | heil hitler | sieg heil | hitler salut* | nazi salut*
    neo nazi* | ku klux klan | master race | racial purity | race war | great replacement
    untermensch*
    nigger* | nigga* | faggot* | kike | kikes | wetback* | towelhead* | raghead* | tranny | trannies
"""
GROUPS = """
    jew | jews | jewish people | muslims | christians | hindus | blacks | black people | whites
    white people | asians | arabs | africans | mexicans | roma | gypsies | immigrants | refugees
    gays | gay people | lesbians | homosexuals | trans people | women | disabled people
"""
DEGRADING = """
    vermin | cockroaches | parasites | subhuman* | inferior race* | are inferior | are animals
    filthy | are a disease | should be banned | do not deserve rights
"""
ELIMINATING = """
    kill all | gas the | gas all | exterminat* | should die | must die | should be killed
    must be killed | wipe out all | deserve to die | ethnic cleansing | burn all | hang all
"""

ILLICIT = """
    how to shoplift | shoplifting tips | how to steal | how to cook meth* | how to make meth*
    cooking meth* | cook meth | make counterfeit | counterfeit money | how to launder money
    how to hack into | fake passport* | forged passport* | buy drugs | selling drugs
    credit card fraud | phishing tutorial | how to pick pockets | how to make drugs
"""
ILLICIT_VIOLENT = """
    how to make a bomb | how to build a bomb | build a bomb | bomb making | pipe bomb* | nail bomb*
    dirty bomb* | how to make a molotov* | how to make explosives | nerve agent* | bioweapon*
    ghost gun* | untraceable gun* | how to poison | hire a hitman | how to make a gun
    how to get away with murder
"""
